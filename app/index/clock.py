"""The one place that supplies time and entry ids: the server's in production, injected in tests."""

from __future__ import annotations

import time
from typing import Final, Protocol

# Goes on while the machine sleeps, where the system has such a clock: waking up must not look like a jump.
_STEADY_CLOCK: Final[int] = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", 1))


class IndexClock(Protocol):
    def now_ms(self) -> int | None:
        """The time that scripts count with; None lets the server read its own clock."""
        ...

    def steady_ms(self) -> int:
        """A clock that nobody sets: only differences mean something."""
        ...


class ServerClock:
    """Redis's clock: no machine but the receiver has a say in who is alive."""

    def now_ms(self) -> None:
        return None

    def steady_ms(self) -> int:
        return time.clock_gettime_ns(_STEADY_CLOCK) // 1_000_000


class ManualClock:
    """A clock that a test turns by hand; serves as the service's wall clock too."""

    def __init__(self, now_ms: int) -> None:
        self._now_ms = now_ms
        self._steady_ms = 0

    def now_ms(self) -> int:
        return self._now_ms

    def steady_ms(self) -> int:
        return self._steady_ms

    def advance(self, seconds: float) -> None:
        """Lets time pass."""
        self._now_ms += round(seconds * 1000)
        self._steady_ms += round(seconds * 1000)

    def jump(self, seconds: float) -> None:
        """Sets the wall clock forwards, or with negative seconds back, without any time passing."""
        self._now_ms += round(seconds * 1000)
