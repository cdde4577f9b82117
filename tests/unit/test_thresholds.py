"""Thresholds of waiting searches against a scan of all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from app.models.capacity import CapacityQuery
from app.service.thresholds import Thresholds

AMOUNTS = st.integers(0, 6).map(float)
CORES = st.integers(1, 9)
QUERIES = st.builds(
    lambda vram, cores, limit: CapacityQuery(min_gpu_vram_gb=vram, min_cpu_cores=cores, limit=limit),
    AMOUNTS,
    CORES,
    st.integers(1, 2),
)


@given(
    steps=st.lists(st.tuples(st.booleans(), QUERIES), max_size=40),
    changes=st.lists(st.tuples(AMOUNTS, st.integers(0, 10)), min_size=1, max_size=8),
)
def test_a_change_meets_exactly_the_searches_that_a_scan_finds(
    steps: list[tuple[bool, CapacityQuery]], changes: list[tuple[float, int]]
) -> None:
    thresholds, kept = Thresholds(), set()
    for adds, query in steps:
        if adds:
            thresholds.add(query)
            kept.add(query)
        else:
            thresholds.remove(query)
            kept.discard(query)
        for vram, cores in changes:
            met = thresholds.met_by(vram, cores)
            assert len(met) == len(set(met))
            assert set(met) == {q for q in kept if q.min_gpu_vram_gb <= vram and q.min_cpu_cores <= cores}
    assert len(thresholds) == len(kept)
    assert set(thresholds.all()) == kept


def test_a_change_that_concerns_nobody_is_told_by_one_look_however_many_wait() -> None:
    thresholds = Thresholds()
    for n in range(5_000):
        thresholds.add(CapacityQuery(min_gpu_vram_gb=80.0 + n, min_cpu_cores=1 + n % 64))
    thresholds.met_by(8.0, 4)
    looks = 0

    class Watched(list[float]):
        def __getitem__(self, index: Any) -> Any:
            nonlocal looks
            assert isinstance(index, int), "many were looked at"
            looks += 1
            return super().__getitem__(index)

        def __iter__(self) -> Iterator[float]:
            raise AssertionError("all were looked at")

    assert thresholds._least is not None
    thresholds._least = Watched(thresholds._least)
    # Where the searches themselves are kept, nobody may look.
    del thresholds._levels, thresholds._queries, thresholds._numbers
    for _ in range(10):
        assert not thresholds.met_by(8.0, 64)
    assert looks == 10
