"""The one place that supplies time and entry ids: the server's in production, injected in tests."""

from __future__ import annotations

from typing import Protocol


class IndexClock(Protocol):
    def now_ms(self) -> int | None:
        """The time that scripts count with; None lets the server read its own clock."""
        ...


class ServerClock:
    """Redis's clock: no machine but the receiver has a say in who is alive."""

    def now_ms(self) -> None:
        return None


class ManualClock:
    """A clock that a test turns by hand; serves as the service's wall clock too."""

    def __init__(self, now_ms: int) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        return self._now_ms

    def advance(self, seconds: float) -> None:
        """Moves the clock; negative seconds move it back."""
        self._now_ms += round(seconds * 1000)
