"""Thresholds of waiting searches against a scan of all of them."""

from __future__ import annotations

import time

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


def test_a_change_that_concerns_nobody_costs_the_same_however_many_wait() -> None:
    def cost_s(searches: int) -> float:
        thresholds = Thresholds()
        for n in range(searches):
            thresholds.add(CapacityQuery(min_gpu_vram_gb=80.0 + n, min_cpu_cores=1 + n % 64))
        thresholds.met_by(8.0, 4)
        best = float("inf")
        for _ in range(5):
            started = time.perf_counter()
            for _ in range(500):
                assert not thresholds.met_by(8.0, 64)
            best = min(best, time.perf_counter() - started)
        return best

    assert cost_s(5_000) < 20 * cost_s(50)
