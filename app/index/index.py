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
from app.index.keys import Keys, encode_pool
from app.index.placement import RESOURCE_FIELDS, from_ms, read_row
from app.index.scripts import Call, load, run
from app.index.upkeep import sweep_call
from app.models.capacity import (
    AgentCapacity,
    AgentStatus,
    AvailableCapacity,
    CapacityPage,
    CapacityQuery,
    Cursor,
    Resources,
)
from app.models.identity import AgentId, StreamId
from app.telemetry import MALFORMED_AGENTS, logger

SLICE: Final = 128
"""Most agents of one set that a single script call looks at: about a millisecond of Redis's time."""

_SILENT_BOUND: Final = 32
"""A lookup that meets more silent agents than this sweeps a slice of them out of the way."""

_TOMBSTONE_MS: Final = 3_600_000

_log = logger(__name__)


class Slice(msgspec.Struct, frozen=True):
    """One answer of find.lua."""

    rows: list[tuple[bytes, int]]
    more: bool
    silent: int
    total: int | None
    last: Cursor | None


def find_call(
    keys: Keys,
    query: CapacityQuery,
    *,
    epoch: str,
    now_ms: int | None,
    offline_after_ms: int,
    limit: int,
    after: Cursor | None,
    with_total: bool,
) -> Call:
    """One slice of a search. A filter that the sets do not know makes it look at more than it returns."""
    filtered = query.gpu_type is not None or query.min_memory_gb > 0 or query.max_age_s is not None
    limit = min(limit, SLICE)
    return Call(
        load("find"),
        keys.prefix,
        (
            "" if now_ms is None else now_ms,
            offline_after_ms,
            epoch,
            query.agent_type,
            "" if query.pool_name is None else encode_pool(query.pool_name),
            repr(query.min_gpu_vram_gb),
            query.min_cpu_cores,
            limit,
            "" if after is None else repr(after.gpu_vram_available_gb),
            "" if after is None else after.agent_id,
            "" if query.gpu_type is None else query.gpu_type.value,
            repr(query.min_memory_gb) if query.min_memory_gb > 0 else "",
            "" if query.max_age_s is None else round(query.max_age_s * 1000),
            # One more than wanted tells whether there is more.
            SLICE if filtered else limit + 1,
            int(with_total),
        ),
    )


def parse_find(reply: list[Any]) -> Slice:
    last_id = reply[5].decode()
    return Slice(
        rows=[(reply[i], int(float(reply[i + 1]))) for i in range(6, len(reply), 2)],
        more=bool(reply[1]),
        silent=reply[2],
        total=None if reply[3] < 0 else reply[3],
        last=Cursor(float(reply[4]), AgentId(last_id)) if last_id else None,
    )


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
        with unavailable():
            while more and len(agents) < query.limit:
                found = await self._slice(query, query.limit - len(agents), after, with_total=not counted)
                if not counted:
                    total, counted = found.total, True
                for document, seen_ms in found.rows:
                    row = self._read(document, seen_ms)
                    # An agent whose figures fell between two slices would be listed a second time.
                    if row is not None and row.agent_id not in listed:
                        listed.add(row.agent_id)
                        agents.append(row)
                if found.silent > _SILENT_BOUND:
                    await run(self._client, sweep_call(self._keys, self._clock.now_ms(), self._offline_after_ms))
                after, more = found.last, found.more
        return CapacityPage(agents=agents, more=more, total=total)

    async def get(self, agent_id: AgentId) -> AgentCapacity | None:
        with unavailable():
            reply = await self._trusting(
                lambda epoch: Call(
                    load("get"),
                    self._keys.prefix,
                    (*self._clock_arguments(), epoch, agent_id, *RESOURCE_FIELDS),
                )
            )
        if reply[0] == b"none":
            return None
        texts = [None if value is None else value.decode() for value in reply[3:]]
        fields = {name: text for name, text in zip(("status", *RESOURCE_FIELDS), texts, strict=True) if text}
        status = AgentStatus(fields.pop("status"))
        resources = msgspec.convert(fields, Resources, strict=False)
        return AgentCapacity(
            agent_id=agent_id,
            status=status if reply[2] or status is AgentStatus.OFFLINE else AgentStatus.OFFLINE,
            timestamp=from_ms(int(float(reply[1]))),
            **msgspec.structs.asdict(resources),
        )

    async def forget(self, agent_id: AgentId) -> StreamId | None:
        call = Call(load("forget"), self._keys.prefix, (self._clock_arguments()[0], agent_id, _TOMBSTONE_MS))
        with unavailable():
            reply = await run(self._client, call)
        return None if reply is None else StreamId.parse(reply)

    async def ping(self) -> None:
        with unavailable():
            epoch = await self._epochs.trusted()
            if await self._client.get(self._keys.epoch) != epoch.encode():
                self._epochs.reconnected()
                await self._epochs.trusted()

    def _clock_arguments(self) -> tuple[int | str, int]:
        now_ms = self._clock.now_ms()
        return ("" if now_ms is None else now_ms), self._offline_after_ms

    async def _slice(self, query: CapacityQuery, limit: int, after: Cursor | None, *, with_total: bool) -> Slice:
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
    def _read(document: bytes, seen_ms: int) -> AvailableCapacity | None:
        try:
            return read_row(document, seen_ms)
        except (msgspec.DecodeError, UnicodeDecodeError):
            MALFORMED_AGENTS.labels(source="index").inc()
            _log.warning("Skipped an agent whose document cannot be read", document_bytes=len(document))
            return None
