"""Reads how log, workers and index stand; a handful of cheap commands."""

from __future__ import annotations

from typing import Any, Final

import redis.asyncio as aredis

from app.index.connect import unavailable
from app.index.epoch import EpochGuard
from app.index.keys import GROUP_INDEX, GROUP_RECORD, Keys
from app.index.placement import from_ms
from app.index.upkeep import Upkeep
from app.models.health import GroupHealth, IndexHealth
from app.models.identity import StreamId

_LATELY_MS: Final = 15_000
_RECENT_MS: Final = 600_000


class RedisHealth:
    """Implements `HealthIndex` on one shard."""

    def __init__(self, client: aredis.Redis, keys: Keys, epochs: EpochGuard, upkeep: Upkeep) -> None:
        self._client: Any = client
        self._keys = keys
        self._epochs = epochs
        self._upkeep = upkeep

    async def health(self) -> IndexHealth:
        keys = self._keys
        now_ms = await self._upkeep.now_ms()
        with unavailable():
            epoch = await self._epochs.current()
            pipeline = self._client.pipeline(transaction=False)
            for key in (keys.seen, keys.silent, keys.offline, keys.cordons):
                pipeline.zcard(key)
            for key in (keys.flapping, keys.cloned):
                pipeline.zcount(key, now_ms - _RECENT_MS, "+inf")
            pipeline.zcount(keys.receivers, now_ms - _LATELY_MS, "+inf")
            pipeline.exists(keys.lease("reaper"))
            pipeline.get(keys.grace)
            pipeline.xlen(keys.heartbeats)
            pipeline.xlen(keys.dead_letters)
            (
                seen,
                silent,
                offline,
                cordoned,
                flapping,
                cloned,
                receivers,
                reaper,
                grace,
                log,
                letters,
            ) = await pipeline.execute()
            memory = await self._client.info("memory")
            groups = await self._groups(now_ms) if log else ()
        return IndexHealth(
            epoch_opened_at=None if epoch is None else from_ms(epoch.opened_ms),
            grace_s=max(0.0, (int(grace or 0) - now_ms) / 1000),
            reporting=seen,
            silent=silent,
            offline=offline,
            cordoned=cordoned,
            flapping=flapping,
            cloned=cloned,
            reaper=bool(reaper),
            receivers=receivers,
            log_entries=log,
            dead_letters=letters,
            memory_bytes=memory["used_memory"],
            groups=groups,
        )

    async def _groups(self, now_ms: int) -> tuple[GroupHealth, ...]:
        found = {}
        for group in await self._client.xinfo_groups(self._keys.heartbeats):
            name = group["name"].decode()
            if name in (GROUP_INDEX, GROUP_RECORD):
                found[name] = await self._group(name, group, now_ms)
        return tuple(found[name] for name in (GROUP_INDEX, GROUP_RECORD) if name in found)

    async def _group(self, name: str, group: dict[str, Any], now_ms: int) -> GroupHealth:
        delivered = group["last-delivered-id"].decode()
        first = await self._client.xrange(self._keys.heartbeats, f"({delivered}", "+", count=1)
        pending = await self._client.xpending(self._keys.heartbeats, name)
        oldest = [StreamId.parse(entry_id).ms for entry_id, _ in first]
        if pending["pending"]:
            oldest.append(StreamId.parse(pending["min"]).ms)
        consumers = await self._client.xinfo_consumers(self._keys.heartbeats, name)
        return GroupHealth(
            group=name,
            workers=sum(consumer["idle"] < _LATELY_MS for consumer in consumers),
            # Redis does not know the lag of a group whose stream was cut in the middle; then at least this many.
            backlog_entries=(group["lag"] if group["lag"] is not None else len(first)) + group["pending"],
            backlog_age_s=max(0.0, (now_ms - min(oldest)) / 1000) if oldest else 0.0,
        )
