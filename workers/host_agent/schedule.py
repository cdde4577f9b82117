"""When the next heartbeat is due: the server's wish with jitter, or a backoff that spreads a returning fleet."""

from __future__ import annotations

import random
from typing import Final

MIN_INTERVAL_S: Final = 0.05
MAX_INTERVAL_S: Final = 3600.0
_JITTER: Final = 0.05
_BACKOFF_JITTER: Final = 0.25
_FIRST_BACKOFF_S: Final = 1.0
_LONGEST_BACKOFF_S: Final = 60.0


class Schedule:
    """Keeps the interval and the number of failures in a row; knows no clock, only the times it is given."""

    def __init__(
        self, interval_s: float, rng: random.Random, *, longest_backoff_s: float = _LONGEST_BACKOFF_S
    ) -> None:
        self.interval_s = interval_s
        self.failures = 0
        self._rng = rng
        self._longest_backoff_s = longest_backoff_s

    def after_answer(self, *, started_s: float, now_s: float, next_heartbeat_s: float | None) -> float:
        """The due time after an answered heartbeat; its mean distance from the last is the server's wish.

        Counted from the start of the last round, so that slow deliveries do not slow the rate. One that took most
        of the interval, as when the machine slept meanwhile, has only just arrived: it is counted from then on.
        """
        self.failures = 0
        if next_heartbeat_s is not None:
            self.interval_s = min(max(next_heartbeat_s, MIN_INTERVAL_S), MAX_INTERVAL_S)
        gap_s = self.interval_s * self._rng.uniform(1 - _JITTER, 1 + _JITTER)
        due_s = started_s + gap_s
        return due_s if due_s - now_s >= self.interval_s / 2 else now_s + gap_s

    def after_failure(self, *, now_s: float, retry_after_s: float | None) -> float:
        """The due time of the next try: 1, 2, 4 … 60 s with jitter, later where the server asks for it."""
        self.failures += 1
        # The exponent is bounded: after a weekend without network 2 ** failures is no float any more.
        backoff_s = min(_FIRST_BACKOFF_S * 2.0 ** min(self.failures - 1, 16), self._longest_backoff_s)
        jittered_s = backoff_s * self._rng.uniform(1 - _BACKOFF_JITTER, 1 + _BACKOFF_JITTER)
        wished_s = min(max(retry_after_s or 0.0, 0.0), MAX_INTERVAL_S) * self._rng.uniform(1, 1 + _BACKOFF_JITTER)
        return now_s + max(min(max(jittered_s, _FIRST_BACKOFF_S), self._longest_backoff_s), wished_s)
