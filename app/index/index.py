"""Lookups: the planner's question answered from rungs and bands, one bounded script per round trip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
import redis.asyncio as aredis

from app.errors import IndexRebuildingError
from app.index.clock import IndexClock
from app.index.connect import unavailable
from app.index.epoch import EpochGuard
from app.index.execute import run
from app.index.keys import Keys
from app.index.lookup import Slice, find_call, get_call, parse_find, parse_get
from app.index.placement import read_row
from app.index.scripts import Call, load
from app.index.upkeep import sweep_call
from app.models.capacity import (
    AgentCapacity,
    AvailableCapacity,
    CapacityPage,
    CapacityQuery,
    Cursor,
)
from app.models.identity import AgentId, StreamId
from app.telemetry import MALFORMED_AGENTS, logger

_SILENT_BOUND: Final = 32
"""A lookup that meets more silent agents than this sweeps a slice of them out of the way."""

_TOMBSTONE_MS: Final = 3_600_000

_log = logger(__name__)


class RedisIndex:
    """Implements `CapacityIndex` on one shard."""

    def __init__(
        self,
        client: aredis.Redis,
        keys: Keys,
        epochs: EpochGuard,
        clock: IndexClock,
        *,
        offline_after_s: float,
    ) -> None:
        self._client = client
        self._keys = keys
        self._epochs = epochs
        self._clock = clock
        self._offline_after_ms = round(offline_after_s * 1000)

    async def find(self, query: CapacityQuery) -> CapacityPage:
        agents: list[AvailableCapacity] = []
        listed: set[AgentId] = set()
        total: int | None = None
        after, more, counted = query.after, True, not query.counted
        silent = 0
        with unavailable():
            while more and len(agents) < query.limit:
                found = await self._slice(
                    query, query.limit - len(agents), after, with_total=not counted, wide=silent > 0
                )
                if not counted:
                    total, counted = found.total, True
                for agent_id, seen_ms, document in found.rows:
                    row = self._read(agent_id, query.agent_type, document, seen_ms)
                    # An agent whose figures fell between two slices would be listed a second time.
                    if row is not None and row.agent_id not in listed:
                        listed.add(row.agent_id)
                        agents.append(row)
                silent += found.silent
                if silent > _SILENT_BOUND:
                    await run(self._client, sweep_call(self._keys, self._clock.now_ms(), self._offline_after_ms))
                after, more = found.last, found.more
        return CapacityPage(agents=agents, more=more, total=total)

    async def get(self, agent_id: AgentId) -> AgentCapacity | None:
        now_ms = self._clock.now_ms()
        with unavailable():
            reply = await self._trusting(
                lambda epoch: get_call(
                    self._keys, agent_id, epoch=epoch, now_ms=now_ms, offline_after_ms=self._offline_after_ms
                )
            )
        try:
            return parse_get(agent_id, reply)
        except (msgspec.ValidationError, ValueError):
            self._skip(agent_id)
            return parse_get(agent_id, [*reply[:4], *[None] * (len(reply) - 4)])

    async def forget(self, agent_id: AgentId) -> StreamId | None:
        now_ms = self._clock.now_ms()
        call = Call(load("forget"), self._keys.prefix, ("" if now_ms is None else now_ms, agent_id, _TOMBSTONE_MS))
        with unavailable():
            reply = await run(self._client, call)
        return None if reply is None else StreamId.parse(reply)

    async def ping(self) -> None:
        with unavailable():
            epoch = await self._epochs.trusted()
            if await self._client.get(self._keys.epoch) != epoch.encode():
                self._epochs.reconnected()
                await self._epochs.trusted()

    async def _slice(
        self, query: CapacityQuery, limit: int, after: Cursor | None, *, with_total: bool, wide: bool
    ) -> Slice:
        return parse_find(
            await self._trusting(
                lambda epoch: find_call(
                    self._keys,
                    query,
                    epoch=epoch,
                    now_ms=self._clock.now_ms(),
                    offline_after_ms=self._offline_after_ms,
                    limit=limit,
                    after=after,
                    with_total=with_total,
                    wide=wide,
                )
            )
        )

    async def _trusting(self, make_call: Callable[[str], Call]) -> list[Any]:
        """Runs a lookup that names the epoch it trusts; a new epoch is learnt and the lookup repeated once."""
        for _ in range(2):
            reply: list[Any] = await run(self._client, make_call(await self._epochs.trusted()))
            if reply[0] != b"epoch":
                return reply
            await self._epochs.learn(reply[1])
        raise IndexRebuildingError

    @staticmethod
    def _read(agent_id: AgentId, agent_type: str, document: bytes, seen_ms: int) -> AvailableCapacity | None:
        try:
            return read_row(agent_id, agent_type, document, seen_ms)
        except (msgspec.DecodeError, UnicodeDecodeError):
            RedisIndex._skip(agent_id)
            return None

    @staticmethod
    def _skip(agent_id: AgentId) -> None:
        MALFORMED_AGENTS.labels(source="index").inc()
        _log.warning("Skipped the metrics of an agent that cannot be read", agent_id=agent_id)
