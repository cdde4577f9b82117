"""An agent's time, moved by its own waiting: a day passes in seconds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from workers.host_agent.clock import StopRequestedError


class SimulatedClock:
    """Boot time in seconds, and a wall clock that is set wrong at times."""

    def __init__(self) -> None:
        self.time_s = 1e6
        self.jumps: list[tuple[float, timedelta]] = []

    def now_s(self) -> float:
        return self.time_s

    def wall(self) -> datetime:
        wrong = next((by for since_s, by in reversed(self.jumps) if self.time_s >= since_s), timedelta())
        return datetime.fromtimestamp(self.time_s + 1.7e9, UTC) + wrong


class Sleep(NamedTuple):
    """The machine sleeps from `at_s` for `lasts_s`; waiting goes on after it as if nothing had been."""

    at_s: float
    lasts_s: float


class SimulatedPause:
    """Waiting moves the clock; the stop request comes at `stop_at_s`."""

    def __init__(self, clock: SimulatedClock, stop_at_s: float, sleeps: list[Sleep]) -> None:
        self._clock = clock
        self._stop_at_s = stop_at_s
        self._sleeps = sleeps

    @property
    def stopping(self) -> bool:
        return self._clock.time_s >= self._stop_at_s

    def wait(self, seconds: float) -> None:
        # As select() does: at most a slice, and not counting the time asleep.
        until_s = min(self._clock.time_s + min(seconds, 10.0), self._stop_at_s)
        while self._sleeps and self._sleeps[0].at_s <= until_s:
            asleep = self._sleeps.pop(0)
            self._clock.time_s = max(self._clock.time_s, asleep.at_s) + asleep.lasts_s
            until_s += asleep.lasts_s
        self._clock.time_s = max(self._clock.time_s, until_s)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        if self.stopping:
            raise StopRequestedError
        yield
