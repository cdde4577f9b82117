"""Until when the record's newest heartbeat says that heartbeats come in."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from app.errors import CapacityUnknownError
from app.models.identity import StreamId
from app.service.freshness import Freshness

NOW_MS = 1_800_000_000_000


class Passing:
    def __init__(self) -> None:
        self.steady_s = 0.0
        clock = Mock()
        clock.now_ms.side_effect = lambda: NOW_MS + round(self.steady_s * 1000)
        self.freshness = Freshness(clock=clock, offline_after_ms=90_000, steady_s=lambda: self.steady_s)


def test_heartbeats_whose_ids_stand_still_in_time_are_heard_of() -> None:
    """Redis's clock was set back by an hour: its ids keep the time that was, and count on within it."""
    passing, ahead_ms = Passing(), NOW_MS + 3_600_000
    for n in range(20):
        fresh = passing.freshness.of(StreamId(ahead_ms, n))
        assert fresh.seen_since_ms == ahead_ms - 90_000
        assert fresh.as_of_ms == fresh.now_ms
        passing.steady_s += 60


def test_one_heartbeat_ahead_of_the_clock_ages_all_the_same() -> None:
    passing, newest = Passing(), StreamId(NOW_MS + 3_600_000, 7)
    passing.freshness.of(newest)
    passing.steady_s = 91.0
    with pytest.raises(CapacityUnknownError):
        passing.freshness.of(newest)
