"""Lookups: the planner's question answered from rungs and bands, one bounded script per round trip."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

import redis.asyncio as aredis

from app.errors import IndexRebuildingError
from app.index.clock import IndexClock
from app.index.connect import unavailable
from app.index.epoch import EpochGuard
from app.index.execute import run
from app.index.keys import Keys
from app.index.links import AsyncLinks
from app.index.lookup import Lookups, Steps, Trusting
from app.index.placement import encode_cordon, expires_argument
from app.index.scripts import Call, load
from app.models.capacity import AgentCapacity, CapacityPage, CapacityQuery
from app.models.cordon import Cordon
from app.models.identity import AgentId, StreamId
from app.telemetry import MALFORMED_AGENTS, logger

T = TypeVar("T")

_TOMBSTONE_MS: Final = 3_600_000

_log = logger(__name__)


class RedisIndex:
    """Implements `CapacityIndex` on one shard.

    Lookups take the planner's short way over `links`; without any (a server that is not one) over the client.
    """

    def __init__(
        self,
        client: aredis.Redis,
        keys: Keys,
        epochs: EpochGuard,
        clock: IndexClock,
        *,
        offline_after_s: float,
        links: AsyncLinks | None = None,
    ) -> None:
        self._client = client
        self._keys = keys
        self._epochs = epochs
        self._clock = clock
        self._links = links
        self.lookups = Lookups(keys, clock, offline_after_ms=round(offline_after_s * 1000), skip=_skip)

    async def find(self, query: CapacityQuery) -> CapacityPage:
        steps = partial(self.lookups.find, query, with_total=query.counted)
        if self._links is None:
            return await self._run(steps())
        return await self._links.run(lambda session: session.find(query, steps(), with_total=query.counted))

    async def get(self, agent_id: AgentId) -> AgentCapacity | None:
        return await self.run(lambda: self.lookups.get(agent_id))

    async def forget(self, agent_id: AgentId) -> StreamId | None:
        await self._require_index()
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

    async def cordon(self, agent_id: AgentId, cordon: Cordon) -> StreamId | None:
        return await self._cordon(agent_id, encode_cordon(cordon), expires_argument(cordon))

    async def uncordon(self, agent_id: AgentId) -> StreamId | None:
        return await self._cordon(agent_id, b"", "")

    async def _cordon(self, agent_id: AgentId, document: bytes, expires: int | str) -> StreamId | None:
        await self._require_index()
        now_ms = self._clock.now_ms()
        arguments = ("" if now_ms is None else now_ms, agent_id, document, expires, "")
        with unavailable():
            reply = await run(self._client, Call(load("cordon"), self._keys.prefix, arguments))
        return None if reply is None else StreamId.parse(reply)

    async def _require_index(self) -> None:
        """An agent that an empty or half rebuilt index does not know may well exist."""
        with unavailable():
            if await self._epochs.current() is None:
                raise IndexRebuildingError

    async def run(self, lookup: Callable[[], Steps[T]]) -> T:
        """Runs a lookup's steps, trusting the epoch in force."""
        if self._links is not None:
            return await self._links.run(lambda session: session.run(lookup()))
        return await self._run(lookup())

    async def _run(self, steps: Steps[T]) -> T:
        reply: Any = None
        with unavailable():
            try:
                while True:
                    step = steps.send(reply)
                    reply = await (run(self._client, step) if isinstance(step, Call) else self._trusting(step))
            except StopIteration as end:
                result: T = end.value
                return result

    async def _trusting(self, make_call: Trusting) -> list[Any]:
        """Runs a lookup that names the epoch it trusts; a new epoch is learnt and the lookup repeated once."""
        for _ in range(2):
            reply: list[Any] = await run(self._client, make_call(await self._epochs.trusted()))
            if reply[0] != b"epoch":
                return reply
            await self._epochs.learn(reply[1])
        raise IndexRebuildingError


def _skip(agent_id: AgentId) -> None:
    MALFORMED_AGENTS.labels(source="index").inc()
    _log.warning("Skipped the metrics of an agent that cannot be read", agent_id=agent_id)
