"""Rungs and bands: exact cover for every threshold, and the same arithmetic in Lua."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from app.index.scripts import load
from app.models.capacity import MAX_CORES
from app.models.ladder import covering, memberships

ALL_CORES = [*range(1030), *(1 << bit for bit in range(11, 17)), 4095, 12_345, 43_690, 65_535, MAX_CORES]


@pytest.mark.parametrize(
    ("cores", "names"),
    [
        (0, ()),
        (1, ("1+",)),
        (8, ("1+", "2+", "4+", "8+")),
        (9, ("1+", "2+", "4+", "8+", "9-9")),
        (13, ("1+", "2+", "4+", "8+", "12-15", "13-13")),
        (14, ("1+", "2+", "4+", "8+", "12-15", "14-15")),
    ],
)
def test_memberships(cores: int, names: tuple[str, ...]) -> None:
    assert memberships(cores) == names


@pytest.mark.parametrize(
    ("min_cores", "names"),
    [
        (-3, ("1+",)),
        (1, ("1+",)),
        (8, ("8+",)),
        (9, ("9-9", "10-11", "12-15", "16+")),
        (12, ("12-15", "16+")),
        (13, ("13-13", "14-15", "16+")),
    ],
)
def test_covering(min_cores: int, names: tuple[str, ...]) -> None:
    assert covering(min_cores) == names


def test_every_threshold_is_covered_exactly_once() -> None:
    sets = {cores: set(memberships(cores)) for cores in range(300)}
    for min_cores in range(1, 300):
        wanted = covering(min_cores)
        for cores, names in sets.items():
            hits = len(names.intersection(wanted))
            assert hits == (1 if cores >= min_cores else 0), (min_cores, cores)


def test_a_search_reads_few_sets() -> None:
    for min_cores in range(1, MAX_CORES + 1):
        assert len(covering(min_cores)) <= max(1, min_cores.bit_length())


@pytest.fixture(scope="module")
def client(valkey_url: str) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(valkey_url, decode_responses=True)
    yield client
    client.close()


def test_lua_has_the_same_ladder(client: redis.Redis) -> None:
    source = load("sweep").source.split("-- Where an agent stands")[0]
    ladder = source[source.index("-- Rungs and bands") :]
    script = ladder + "\nlocal n = tonumber(ARGV[1])\nreturn {memberships(n), covering(n)}"
    for cores in ALL_CORES:
        in_sets, read = client.eval(script, 0, cores)
        assert tuple(in_sets) == memberships(cores)
        assert tuple(read) == covering(cores)
