"""Taking heartbeats in: refuse when too many wait, append, and say when to come again."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from app.errors import BacklogFullError
from app.models.heartbeat import Heartbeat
from app.models.identity import AgentId, StreamId
from app.service.ports import HeartbeatLog, IntakeLoad

_LOOK_EVERY_S: Final = 0.5
_SHORTEST_LOOK_S: Final = 0.001
_JITTER: Final = 0.1
_LONGEST_SHARE: Final = 0.45
"""Of `offline_after_s`, jitter included: asked for less often, agents would look silent after one lost heartbeat.

The rest is for the agent's own jitter and a gateway's batch.
"""


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the heartbeats.

    Attributes:
        stream_ids: in the order given; each is in the log.
        next_heartbeat_s: when the sender is to report again.
        cloned: those of the senders whose id was lately seen from two machines.
    """

    stream_ids: list[StreamId]
    next_heartbeat_s: float
    cloned: frozenset[AgentId]


class HeartbeatIntake:
    """Accepts heartbeats for as long as the index keeps up.

    Args:
        log: the stream.
        interval_s: how often an agent of a fleet of ordinary size is to report.
        offline_after_s: the silence after which it is offline.
        target_per_s: what the whole fleet is spread out to.
        max_backlog: entries that may wait for the index before heartbeats are refused.
        steady_s: a clock that nobody sets.
    """

    def __init__(
        self,
        log: HeartbeatLog,
        *,
        interval_s: float,
        offline_after_s: float,
        target_per_s: float,
        max_backlog: int,
        steady_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._interval_s = interval_s
        self._longest_s = max(interval_s, offline_after_s * _LONGEST_SHARE)
        self._target_per_s = target_per_s
        self._max_backlog = max_backlog
        self._steady_s = steady_s
        self._load = IntakeLoad()
        self._looked_at = -math.inf
        self._accepted_since_look = 0
        self._rate_per_s = 0.0
        self._refused = False

    def take_refused(self) -> bool:
        """Whether heartbeats were refused since this was asked last."""
        refused, self._refused = self._refused, False
        return refused

    async def accept(self, heartbeats: Sequence[Heartbeat]) -> Receipt:
        """Returns once the log has all of them.

        Raises:
            BacklogFullError: too many wait already; come again after `retry_after_s`.
            IndexUnavailableError: Redis cannot take them.
        """
        await self._look()
        if self._load.unapplied >= self._max_backlog:
            self._refused = True
            # Spread like the fleet itself, or all that were refused come back together.
            raise BacklogFullError(retry_after_s=round(random.uniform(0.5, 1.0) * self._spread_s(), 1))  # noqa: S311
        # Before the await: what is under way will be in the log before anybody looks again.
        self._accepted_since_look += len(heartbeats)
        stream_ids = await self._log.append(heartbeats)
        cloned = self._load.cloned
        return Receipt(
            stream_ids=stream_ids,
            next_heartbeat_s=self._next_s(),
            cloned=frozenset(one.agent_id for one in heartbeats if one.agent_id in cloned) if cloned else cloned,
        )

    def _spread_s(self) -> float:
        return min(self._longest_s, max(self._interval_s, self._load.agents / self._target_per_s))

    def _next_s(self) -> float:
        """Jittered; widely so while more come in than the target, so that a fleet that returns at once spreads."""
        widest = 0.5 if self._rate_per_s > self._target_per_s else 1.0 - _JITTER
        spread_s = self._spread_s()
        latest_s = min(self._longest_s, (1.0 + _JITTER) * spread_s)
        return round(random.uniform(widest * spread_s, latest_s), 3)  # noqa: S311  # spread, no secret

    async def _look(self) -> None:
        now = self._steady_s()
        elapsed_s = now - self._looked_at
        room = self._max_backlog - self._load.unapplied
        # A fleet that comes all at once fills the log between two looks.
        may_be_full = 0 < room <= self._accepted_since_look
        if elapsed_s < _LOOK_EVERY_S and not may_be_full:
            return
        # Set before the await: requests that come in meanwhile go on with what is known.
        self._rate_per_s = self._accepted_since_look / max(elapsed_s, _SHORTEST_LOOK_S)
        self._looked_at, self._accepted_since_look = now, 0
        self._load = await self._log.load()
