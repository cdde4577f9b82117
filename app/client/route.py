"""Which way a call goes first while one of them is away."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

T = TypeVar("T")

FALLBACK_FOR_S: Final = 2.0


class Route(Generic[T]):
    """The first way, and perhaps a second one for when it is away.

    After a failure of the first, calls go to the second at once for FALLBACK_FOR_S: a planner that waited for
    the timeout of a dead server at every call would be as good as dead itself. Threads may share it; at worst
    one of them tries the first way once more.
    """

    def __init__(self, ways: Sequence[T], *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._ways = tuple(ways)
        self._reversed = tuple(reversed(ways))
        self._now_s = now_s
        self._away_until_s = 0.0

    @property
    def ways(self) -> tuple[T, ...]:
        return self._ways

    def order(self) -> tuple[T, ...]:
        """The ways in the order in which to try them; both are tried before a call fails."""
        return self._reversed if self._away_until_s and self._now_s() < self._away_until_s else self._ways

    def failed(self, way: T) -> None:
        if way is self._ways[0]:
            self._away_until_s = self._now_s() + FALLBACK_FOR_S

    def answered(self, way: T) -> None:
        if self._away_until_s and way is self._ways[0]:
            self._away_until_s = 0.0
