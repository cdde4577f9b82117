"""What still counts as fresh in the record: its times are of Redis, which cannot be asked for the present."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from app.errors import CapacityUnknownError
from app.models.identity import StreamId
from app.service.ports import Clock


class Fresh(msgspec.Struct, frozen=True, kw_only=True):
    """Attributes:

    seen_since_ms: who was heard of before it is silent.
    now_ms: by this process's clock.
    as_of_ms: of the newest heartbeat, but never later than that.
    """

    seen_since_ms: int
    now_ms: int
    as_of_ms: int


class Freshness:
    """Ages are counted up to the later of two moments: this process's present, and the newest heartbeat's time
    plus what has passed, by a clock that nobody sets, since this process saw that heartbeat first.

    The second one holds where Redis's clock is, or was, ahead: by ours alone nobody would be silent before it has
    caught up.
    """

    def __init__(
        self, *, clock: Clock, offline_after_ms: int, steady_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._offline_after_ms = offline_after_ms
        self._steady_s = steady_s
        self._newest: StreamId | None = None
        self._saw_newest_s = 0.0

    def of(self, newest: StreamId | None) -> Fresh:
        """Args: newest: the id under which anybody in the record was last heard of.

        Raises:
            CapacityUnknownError: nobody in it was heard of recently, which says more about the way of the
                heartbeats than about the agents.
        """
        if newest is None:
            raise CapacityUnknownError
        # Whole ids: where Redis's clock was set back, only the counters of those that follow rise.
        if newest != self._newest:
            self._newest, self._saw_newest_s = newest, self._steady_s()
        now_ms = self._clock.now_ms()
        unheard_ms = round((self._steady_s() - self._saw_newest_s) * 1000)
        seen_since_ms = max(now_ms, newest.ms + unheard_ms) - self._offline_after_ms
        if newest.ms < seen_since_ms:
            raise CapacityUnknownError
        return Fresh(seen_since_ms=seen_since_ms, now_ms=now_ms, as_of_ms=min(newest.ms, now_ms))
