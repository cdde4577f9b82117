"""The log `headroom:heartbeats`: producers append, two consumer groups read at their own pace and ack last."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import redis.asyncio as aredis
from redis.exceptions import ResponseError

from app.errors import UndecodableEntryError
from app.index.clock import IndexClock
from app.index.connect import is_missing_group, send, unavailable
from app.index.execute import run
from app.index.keys import GROUP_INDEX, GROUP_RECORD, Keys
from app.index.placement import decode_cordon
from app.index.scripts import Argument, Call, load
from app.models.heartbeat import Heartbeat, decode, encode
from app.models.identity import AgentId, StreamId
from app.models.log import LogEntry
from app.models.transition import Reason, Transition, TransitionKind
from app.service.ports import IntakeLoad
from app.telemetry import DEAD_LETTERS, STREAM_LOST, logger

_HEARTBEAT: Final = b"heartbeat"
_TRANSITION: Final = b"transition"
_KEPT_DEAD_LETTERS: Final = 10_000
_LISTED_CLONES: Final = 500
_GONE_AFTER_S: Final = 86_400.0

_log = logger(__name__)

_RawEntry = tuple[bytes, Mapping[bytes, bytes]]


class HeartbeatStream:
    """Implements `HeartbeatLog`: the one way in."""

    def __init__(self, client: aredis.Redis, keys: Keys, clock: IndexClock, *, offline_after_s: float) -> None:
        self._client = client
        self._keys = keys
        self._clock = clock
        self._offline_after_ms = round(offline_after_s * 1000)

    async def load(self) -> IntakeLoad:
        now_ms = self._clock.now_ms()
        arguments = ("" if now_ms is None else now_ms, self._offline_after_ms, _LISTED_CLONES)
        with unavailable():
            reply = await run(self._client, Call(load("load"), self._keys.prefix, arguments))
        return IntakeLoad(
            unapplied=reply[0],
            agents=reply[1],
            cloned=frozenset(AgentId(agent_id.decode()) for agent_id in reply[2:]),
        )

    async def append(self, heartbeats: Sequence[Heartbeat]) -> list[StreamId]:
        entry_id = await self._entry_id()
        pipeline = self._client.pipeline(transaction=False)
        for heartbeat in heartbeats:
            pipeline.xadd(self._keys.heartbeats, {_HEARTBEAT: encode(heartbeat)}, id=entry_id)
        with unavailable():
            return [StreamId.parse(entry) for entry in await send(pipeline)]

    async def _entry_id(self) -> str:
        now_ms = self._clock.now_ms()
        if now_ms is None:
            return "*"
        # As next_id in common.lua.
        with unavailable():
            return f"{max(now_ms, (await newest_id(self._client, self._keys.heartbeats)).ms)}-*"


class GroupReader:
    """One consumer of one group. `client` blocks; its socket timeout lies above `block_s`.

    An entry stays pending until it is acked: after a failed round the same entries are read again first, and
    those of a consumer that died are taken over once they have been idle for `takeover_after_s`.
    """

    def __init__(
        self,
        client: aredis.Redis,
        keys: Keys,
        group: str,
        consumer: str,
        *,
        batch: int,
        block_s: float,
        takeover_after_s: float,
    ) -> None:
        self._client = client
        self._keys = keys
        self._group = group
        self._consumer = consumer
        self._batch = batch
        self._block_ms = max(1, round(block_s * 1000))
        self._takeover_after_ms = round(takeover_after_s * 1000)
        self._next_takeover = 0.0
        self._takeover_cursor = b"0-0"
        self._may_have_pending = True
        self.behind = False
        """The last read came back full: more is waiting."""

    async def read(self) -> list[LogEntry]:
        """The next entries in log order, those left unacked first; empty after `block_s` without any."""
        with unavailable():
            try:
                found = await self._read()
                self.behind = len(found) >= self._batch
                return [_parse(*raw) for raw in found]
            except ResponseError as error:
                if not is_missing_group(error):
                    raise
                _log.warning("The stream or its group is gone, making it anew", group=self._group)
                await ensure_group(self._client, self._keys.heartbeats, self._group)
                return []

    async def ack(self, stream_ids: Sequence[StreamId]) -> None:
        if stream_ids:
            with unavailable():
                await self._client.xack(self._keys.heartbeats, self._group, *map(str, stream_ids))
        self._may_have_pending = False

    async def dead_letter(self, stream_id: StreamId, reason: str) -> None:
        """Keeps an entry that can never be processed where a person can look at it; the caller acks it."""
        with unavailable():
            raw: Any = await self._client.xrange(self._keys.heartbeats, str(stream_id), str(stream_id), count=1)
            fields: dict[Any, Any] = dict(raw[0][1]) if raw else {}
            fields |= {"entry_id": str(stream_id), "group": self._group, "reason": reason}
            await self._client.xadd(self._keys.dead_letters, fields, maxlen=_KEPT_DEAD_LETTERS, approximate=True)
        DEAD_LETTERS.labels(group=self._group).inc()
        _log.error("Set a log entry aside that cannot be processed", entry_id=str(stream_id), reason=reason)

    async def _read(self) -> list[_RawEntry]:
        while self._may_have_pending:
            own = stream_entries(await self._group_read("0", block_ms=None))
            if gone := [entry_id for entry_id, fields in own if not fields]:
                await self._note_lost(gone)
            if there := [(entry_id, fields) for entry_id, fields in own if fields]:
                return there
            self._may_have_pending = bool(own)
        if taken := await self._take_over():
            self._may_have_pending = True
            return taken
        await self._note_lost()
        entries = stream_entries(await self._group_read(">", block_ms=self._block_ms))
        self._may_have_pending = bool(entries)
        return entries

    async def _note_lost(self, gone: Sequence[bytes] = ()) -> None:
        """Counts what was trimmed before this group had processed it: `gone`, which was read, and what was not."""
        self._count_lost(await self._run("lost", *gone))

    def _count_lost(self, entries: int) -> None:
        if entries:
            STREAM_LOST.labels(group=self._group).inc(entries)
            _log.error("Log entries were trimmed before they were processed", group=self._group, entries=entries)

    async def _run(self, script: str, *arguments: Argument) -> Any:
        noted = int(self._group == GROUP_RECORD)
        return await run(self._client, Call(load(script), self._keys.prefix, ("", self._group, noted, *arguments)))

    async def _group_read(self, after: str, *, block_ms: int | None) -> Any:
        return await self._client.xreadgroup(
            self._group, self._consumer, {self._keys.heartbeats: after}, count=self._batch, block=block_ms
        )

    async def _take_over(self) -> list[_RawEntry]:
        if time.monotonic() < self._next_takeover:
            return []
        self._takeover_cursor, found, lost = await self._run(
            "take_over", self._consumer, self._takeover_after_ms, self._takeover_cursor, self._batch
        )
        self._count_lost(lost)
        entries: list[_RawEntry] = [
            (entry_id, dict(zip(fields[::2], fields[1::2], strict=True))) for entry_id, fields in found
        ]
        if not entries and self._takeover_cursor == b"0-0":
            self._next_takeover = time.monotonic() + self._takeover_after_ms / 2000
        return entries


class StreamUpkeep:
    """Keeps the stream short: everything below the slower group goes, and past the cap what only it needs."""

    def __init__(self, client: aredis.Redis, keys: Keys, *, max_entries: int) -> None:
        self._client = client
        self._keys = keys
        self._max_entries = max_entries

    async def trim(self) -> int:
        """Trims one slice; returns how many entries went, 0: there are no more to trim."""
        with unavailable():
            positions = await self.positions()
            if positions[GROUP_INDEX] is None:
                return 0
            floor = min(positions[GROUP_INDEX], positions[GROUP_RECORD] or StreamId(0))
            if await self._client.xlen(self._keys.heartbeats) > self._max_entries:
                floor = positions[GROUP_INDEX]
            return int(await self._client.xtrim(self._keys.heartbeats, minid=str(floor), approximate=True))

    async def forget_consumers(self, *, idle_s: float = _GONE_AFTER_S) -> int:
        """Forgets consumers that hold no entry and have been idle for so long; returns how many."""
        call = Call(load("forget_consumers"), self._keys.prefix, ("", round(idle_s * 1000)))
        with unavailable():
            return int(await run(self._client, call))

    async def positions(self) -> dict[str, StreamId | None]:
        """Per group the oldest entry it still needs; None where the group does not exist."""
        positions: dict[str, StreamId | None] = {GROUP_INDEX: None, GROUP_RECORD: None}
        try:
            groups = await self._client.xinfo_groups(self._keys.heartbeats)
        except ResponseError as error:
            if "no such key" in str(error):
                return positions
            raise
        for group in groups:
            name = group["name"].decode()
            if name in positions:
                pending = await self._client.xpending(self._keys.heartbeats, name)
                needed = pending["min"] if pending["pending"] else group["last-delivered-id"]
                positions[name] = StreamId.parse(needed)
        return positions


async def newest_id(client: aredis.Redis, stream: str) -> StreamId:
    """The greatest id that the stream ever had, 0-0 where there is none."""
    try:
        info: Any = await client.xinfo_stream(stream)
    except ResponseError as error:
        if "no such key" not in str(error):
            raise
        return StreamId(0)
    return StreamId.parse(info["last-generated-id"])


async def ensure_group(client: aredis.Redis, stream: str, group: str) -> None:
    """Makes the group, and the stream, where they are missing; a new group reads from the beginning."""
    trimmed = 0
    try:
        info: Any = await client.xinfo_stream(stream)
        trimmed = info["entries-added"] - info["length"]
    except ResponseError as error:
        if "no such key" not in str(error):
            raise
    try:
        # What was trimmed before the group was there is not its loss; what will be is.
        await client.xgroup_create(stream, group, id="0", mkstream=True, entries_read=trimmed)
    except ResponseError as error:
        if not str(error).startswith("BUSYGROUP"):
            raise


def stream_entries(reply: Any) -> list[_RawEntry]:
    """The entries of the one stream that was read, whichever protocol version shaped the reply."""
    if not reply:
        return []
    streams = reply.values() if isinstance(reply, dict) else (entries for _, entries in reply)
    found: list[_RawEntry] = []
    for entries in streams:
        # RESP3 wraps the entries of each stream in one more list.
        nested = entries[0] if len(entries) == 1 and entries and isinstance(entries[0], list) else entries
        # An entry that was trimmed while it was pending has no fields any more.
        found += [(entry_id, {} if fields is None else fields) for entry_id, fields in nested]
    return found


def _parse(entry_id: bytes, fields: Mapping[bytes, bytes]) -> LogEntry:
    stream_id = StreamId.parse(entry_id)
    try:
        if _HEARTBEAT in fields:
            return LogEntry(stream_id, decode(fields[_HEARTBEAT]))
        if _TRANSITION in fields:
            return LogEntry(stream_id, _transition(stream_id, fields))
    except (UndecodableEntryError, msgspec.DecodeError, ValueError, KeyError) as error:
        return LogEntry(stream_id, None, str(error) or type(error).__name__)
    return LogEntry(stream_id, None, "unknown kind of entry")


def _transition(stream_id: StreamId, fields: Mapping[bytes, bytes]) -> Transition:
    return Transition(
        agent_id=AgentId(fields[b"agent_id"].decode()),
        kind=TransitionKind(fields[_TRANSITION].decode()),
        reason=Reason(fields[b"reason"].decode()),
        position=StreamId.parse(fields[b"position"]) if b"position" in fields else stream_id,
        at_ms=int(fields[b"at_ms"]),
        flapping=fields.get(b"flapping") == b"1",
        cordon=decode_cordon(fields[b"cordon"]) if fields.get(b"cordon") else None,
    )
