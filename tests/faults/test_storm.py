"""Everything dies at random while heartbeats come in: the short form of `scripts/faults --storm`."""

from __future__ import annotations

from tests.faults.conftest import Build, Row
from tests.faults.storm import PARTS, Storm

SECONDS = 6.0


def test_row_47_storm(build: Build, row: Row) -> None:
    """APIs, ingests and recorders are killed at random, one after the other, under 200 heartbeats a second."""
    house = build(*PARTS, agents=20)
    storm = Storm(house, rate=200, seed=47)
    storm.blow(SECONDS)
    result = storm.result(persistence="", seconds=SECONDS)
    assert result.held, result
    assert result.acknowledged > 100
    house.check(heal=False)
    row.require_answers(sources=frozenset({"index"}))
    row.saw(f"{sum(result.killed.values())} kills, {result.acknowledged} acknowledged heartbeats, none lost")
