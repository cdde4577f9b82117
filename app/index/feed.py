"""The change feed `headroom:events`, read by one reader per process."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

import redis.asyncio as aredis

from app.index.changes import parse_change
from app.index.clock import IndexClock
from app.index.connect import unavailable
from app.index.execute import run
from app.index.keys import Keys
from app.index.scripts import Call, load
from app.index.stream import stream_entries
from app.models.change import Change, ChangeKind
from app.models.identity import StreamId
from app.telemetry import FEED_UNREADABLE

log = logging.getLogger(__name__)

_BATCH: Final = 500
_MOST_AMOUNTS: Final = 500


class RedisFeed:
    """Implements `ChangeFeed` on one shard. `client` blocks; its socket timeout lies above the block time."""

    def __init__(self, client: aredis.Redis, keys: Keys, clock: IndexClock) -> None:
        self._client = client
        self._keys = keys
        self._clock = clock

    async def newest(self) -> StreamId:
        with unavailable():
            last: Any = await self._client.xrevrange(self._keys.events, count=1)
        return StreamId.parse(last[0][0]) if last else StreamId(0)

    async def read(self, after: StreamId, *, block_s: float) -> list[Change]:
        with unavailable():
            lost = await self._lost(after)
            start = StreamId(0) if lost else after
            reply = await self._client.xread(
                {self._keys.events: str(start)}, count=_BATCH, block=max(1, round(block_s * 1000))
            )
        unreadable: list[StreamId] = []
        changes = [parse_change(*raw, unreadable=unreadable.append) for raw in stream_entries(reply)]
        if unreadable:
            FEED_UNREADABLE.inc(len(unreadable))
            log.warning("%d changes cannot be read, from %s on: all start over", len(unreadable), unreadable[0])
        told = bool(changes) and changes[0].kind is ChangeKind.RESET
        if lost and not told and (changes or after != start):
            # Nothing is there yet, or the feed's own reset was trimmed.
            return [Change(version=start, kind=ChangeKind.RESET), *changes]
        return changes

    async def want_memory(self, amounts_gb: Sequence[float]) -> None:
        now_ms = self._clock.now_ms()
        arguments = ("" if now_ms is None else now_ms, _MOST_AMOUNTS, *map(repr, amounts_gb[:_MOST_AMOUNTS]))
        with unavailable():
            if not await run(self._client, Call(load("want_memory"), self._keys.prefix, arguments)):
                log.info("Searches wait for more than %d different amounts of memory", _MOST_AMOUNTS)

    async def _lost(self, after: StreamId) -> bool:
        """Whether what comes after that version is not all there: trimmed, or flushed and begun anew."""
        if after == StreamId(0):
            return True
        first: Any = await self._client.xrange(self._keys.events, count=1)
        last: Any = await self._client.xrevrange(self._keys.events, count=1)
        return not first or StreamId.parse(first[0][0]) > after or StreamId.parse(last[0][0]) < after
