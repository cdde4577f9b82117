"""Reads the agents' hashes back: what the index knows of every agent, for the record and for the audit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec
import redis.asyncio as aredis
from redis.exceptions import WatchError

from app.index.connect import send_reads, unavailable
from app.index.keys import Keys
from app.index.placement import RESOURCE_FIELDS, decode_cordon
from app.index.stream import newest_id
from app.models.agent import IndexedState
from app.models.capacity import AgentStatus
from app.models.cordon import Cordon
from app.models.heartbeat import Heartbeat, ResourceMetrics
from app.models.identity import AgentId, StreamId, is_agent_id
from app.models.log import Gap, LogEntry
from app.models.order import Boot
from app.models.transition import Reason, Transition, TransitionKind

_SCANNED: Final = 1_000
"""Keys that one step looks through; an agent has one key, the sets of a large fleet some hundreds."""

_GREATEST_N: Final = 2**63 - 1

_Hash = dict[bytes, bytes]

_FIELDS: Final = frozenset(b"status agent_type pool_name hostname boot_id seq last_id indexed machine".split())
"""Of every agent that is no tombstone; inspect.lua names the same."""

_READS: Final = 200
"""Hashes that one pipeline reads: Redis answers no lookup before it has answered those that it has got."""


class IndexedAgent(msgspec.Struct, frozen=True, kw_only=True):
    """One agent as its hash has it.

    Attributes:
        heartbeat: what the newest one said, gaps filled.
        last_id: its log entry.
        status: offline too when the reaper said so.
        indexed: the place it stands in, "vram cores scope pool", empty for none.
        silent: whether it was declared offline after a silence.
        retired: its earlier boots, newest first.
        changed_ms: when its status last changed; None if it has not since a rebuild put it back.
        as_of: the newest log entry when the hash was read.
    """

    heartbeat: Heartbeat
    last_id: StreamId
    status: AgentStatus
    indexed: str
    cordon: Cordon | None
    cordon_id: StreamId | None
    silent: bool
    retired: tuple[Boot, ...]
    changed_ms: int | None
    as_of: StreamId


class IndexStates:
    """Every agent of one shard, in pages; the load on a live system is one pipeline of 200 reads at a time."""

    def __init__(self, client: aredis.Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    async def agents(self) -> AsyncIterator[list[IndexedAgent]]:
        """Every agent that has a hash throughout; may show one twice.

        By hashes and not by the sets of the seen, silent and offline: an agent that moves from one to another
        meanwhile could be missed in both.
        """
        async for page in self._hashes():
            if agents := [_read(*one) for one in page if _is_whole(one[1])]:
                yield agents

    async def some(self, agent_ids: Sequence[AgentId]) -> list[IndexedAgent]:
        """Those of these that have a hash."""
        with unavailable():
            page = await self._page(agent_ids)
        return [_read(*one) for one in page if _is_whole(one[1])]

    async def as_log(self) -> AsyncIterator[list[LogEntry]]:
        """The same as entries in place of those that made them, and of those that were forgotten of late."""
        async for page in self._hashes():
            yield [entry for one in page for entry in _log_of(*one)]

    async def gap(self) -> Gap | None:
        """What the record's group missed, None when nothing."""
        with unavailable():
            fields: Any = await self._client.hgetall(self._keys.gap)
        if not fields:
            return None
        return Gap(StreamId.parse(fields[b"first"]), StreamId.parse(fields[b"last"]), int(fields[b"entries"]))

    async def close_gap(self, gap: Gap) -> None:
        """Forgets the gap, unless it has grown meanwhile."""
        with unavailable(), suppress(WatchError):
            async with self._client.pipeline(transaction=True) as pipeline:
                await pipeline.watch(self._keys.gap)
                if await self.gap() == gap:
                    pipeline.multi()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
                    pipeline.delete(self._keys.gap)
                    await pipeline.execute()

    async def _hashes(self) -> AsyncIterator[list[tuple[AgentId, _Hash, StreamId]]]:
        cursor, start = 0, self._keys.agent("")
        while True:
            with unavailable():
                found: Any = await self._client.scan(cursor, match=f"{start}*", count=_SCANNED)
                cursor, keys = found
                names = (key.decode().removeprefix(start) for key in keys)
                # Agents of a type called "agent" have sets by names that begin alike.
                page = await self._page([AgentId(name) for name in names if is_agent_id(name)])
            if page:
                yield page
            if not cursor:
                return

    async def _page(self, agent_ids: Sequence[AgentId]) -> list[tuple[AgentId, _Hash, StreamId]]:
        page: list[tuple[AgentId, _Hash, StreamId]] = []
        for at in range(0, len(agent_ids), _READS):
            part = agent_ids[at : at + _READS]
            # Before the hashes: what changes an agent after they were read has a greater id.
            as_of = await newest_id(self._client, self._keys.heartbeats)
            pipeline = self._client.pipeline(transaction=False)
            for agent_id in part:
                pipeline.hgetall(self._keys.agent(agent_id))
            replies = await send_reads(pipeline)
            page += [(agent_id, raw, as_of) for agent_id, raw in zip(part, replies, strict=True) if raw]
        return page


def _is_whole(raw: _Hash) -> bool:
    """False for a tombstone, and for what somebody has damaged, which the audit reports."""
    return raw.keys() >= _FIELDS


def _log_of(agent_id: AgentId, raw: _Hash, as_of: StreamId) -> list[LogEntry]:
    if b"status" in raw:
        return entries_of(_read(agent_id, raw, as_of)) if _is_whole(raw) else []
    # A tombstone knows nothing but the entry by which the agent was forgotten.
    if b"last_id" not in raw:
        return []
    stream_id = StreamId.parse(raw[b"last_id"])
    forgotten = Transition(
        agent_id=agent_id,
        kind=TransitionKind.FORGOTTEN,
        reason=Reason.OPERATOR,
        position=stream_id,
        at_ms=stream_id.ms,
    )
    return [LogEntry(stream_id, forgotten)]


def _read(agent_id: AgentId, raw: _Hash, as_of: StreamId) -> IndexedAgent:
    fields = {name.decode(): value.decode() for name, value in raw.items()}
    metrics = None
    if fields.get("has_metrics") == "1":
        sent = {name: fields[name] for name in RESOURCE_FIELDS if name in fields}
        metrics = msgspec.convert(sent, ResourceMetrics, strict=False)
    status = AgentStatus(fields["status"])
    changes = fields.get("changes", "").split()
    return IndexedAgent(
        heartbeat=Heartbeat(
            agent_id=agent_id,
            agent_type=fields["agent_type"],
            pool_name=fields["pool_name"],
            hostname=fields["hostname"],
            status=status,
            boot_id=fields["boot_id"] or None,
            seq=int(fields["seq"]) if fields["seq"] else None,
            resource_metrics=metrics,
        ),
        last_id=StreamId.parse(fields["last_id"]),
        status=status,
        indexed=fields["indexed"],
        cordon=decode_cordon(raw[b"cordon"]) if raw.get(b"cordon") else None,
        cordon_id=StreamId.parse(fields["cordon_id"]) if fields.get("cordon_id") else None,
        # Who is taken out as silent loses the fingerprint; a goodbye has one, as every heartbeat.
        silent=status is AgentStatus.OFFLINE and not fields.get("fingerprint"),
        retired=tuple(_boot(line) for line in fields.get("boots", "").split("\n") if line),
        changed_ms=int(changes[-1]) if changes else None,
        as_of=as_of,
    )


def _boot(line: str) -> Boot:
    seq, _, boot_id = line.partition(" ")
    return Boot(boot_id, int(seq))


def entries_of(agent: IndexedAgent) -> list[LogEntry]:
    """What makes the record agree with the index about this agent, as entries of the log."""
    agent_id = agent.heartbeat.agent_id
    state = IndexedState(heartbeat=agent.heartbeat, silent=agent.silent, retired=agent.retired)
    entries = [LogEntry(agent.last_id, state)]
    if agent.changed_ms is not None:
        change = Transition(
            agent_id=agent_id,
            kind=TransitionKind(agent.status.value),
            reason=Reason.SILENT if agent.silent else Reason.HEARTBEAT,
            position=agent.last_id,
            at_ms=agent.changed_ms,
        )
        entries.append(LogEntry(_change_id(agent), change))
    if agent.cordon_id is not None:
        cordon = Transition(
            agent_id=agent_id,
            kind=TransitionKind.UNCORDONED if agent.cordon is None else TransitionKind.CORDONED,
            reason=Reason.OPERATOR,
            position=agent.cordon_id,
            at_ms=agent.cordon_id.ms,
            cordon=agent.cordon,
        )
        entries.append(LogEntry(agent.cordon_id, cordon))
    return entries


def _change_id(agent: IndexedAgent) -> StreamId:
    """Where the last change of status stands among the agent's changes: after all that had been when its hash was
    read, before all that come later. When it was says nothing of that: ids run ahead of a clock that was set back.
    """
    stream_id = max(agent.as_of, agent.last_id)
    if stream_id != agent.cordon_id:
        return stream_id
    # Both are events of the agent, and the key of an event is its entry.
    return StreamId(stream_id.ms, stream_id.n - 1) if stream_id.n else StreamId(stream_id.ms - 1, _GREATEST_N)
