"""Reads the agents' hashes back: what the index knows of every agent, for the record and for the audit."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Final

import msgspec
import redis.asyncio as aredis
from redis.exceptions import WatchError

from app.index.connect import unavailable
from app.index.keys import Keys
from app.index.placement import RESOURCE_FIELDS, decode_cordon
from app.models.capacity import AgentStatus
from app.models.cordon import Cordon
from app.models.heartbeat import Heartbeat, ResourceMetrics
from app.models.identity import AgentId, StreamId, is_agent_id
from app.models.log import Gap, LogEntry
from app.models.transition import Reason, Transition, TransitionKind

_SCANNED: Final = 1_000
"""Keys that one step looks through; an agent has one key, the sets of a large fleet some hundreds."""

_Hash = dict[bytes, bytes]

_FIELDS: Final = frozenset(b"status agent_type pool_name hostname boot_id seq last_id indexed machine".split())
"""Of every agent that is no tombstone; inspect.lua names the same."""


class IndexedAgent(msgspec.Struct, frozen=True, kw_only=True):
    """One agent as its hash has it.

    Attributes:
        heartbeat: what the newest one said, gaps filled.
        last_id: its log entry.
        status: offline too when the reaper said so.
        indexed: the place it stands in, "vram cores scope pool", empty for none.
    """

    heartbeat: Heartbeat
    last_id: StreamId
    status: AgentStatus
    indexed: str
    cordon: Cordon | None
    cordon_id: StreamId | None


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

    async def as_log(self) -> AsyncIterator[list[LogEntry]]:
        """The same as the log entries that would have made them, and of those that were forgotten of late."""
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

    async def _hashes(self) -> AsyncIterator[list[tuple[AgentId, _Hash]]]:
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

    async def _page(self, agent_ids: list[AgentId]) -> list[tuple[AgentId, _Hash]]:
        pipeline = self._client.pipeline(transaction=False)
        for agent_id in agent_ids:
            pipeline.hgetall(self._keys.agent(agent_id))
        return list(zip(agent_ids, await pipeline.execute(), strict=True))


def _is_whole(raw: _Hash) -> bool:
    """False for a tombstone, and for what somebody has damaged, which the audit reports."""
    return raw.keys() >= _FIELDS


def _log_of(agent_id: AgentId, raw: _Hash) -> list[LogEntry]:
    if b"status" in raw:
        return entries_of(_read(agent_id, raw)) if _is_whole(raw) else []
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


def _read(agent_id: AgentId, raw: _Hash) -> IndexedAgent:
    fields = {name.decode(): value.decode() for name, value in raw.items()}
    metrics = None
    if fields.get("has_metrics") == "1":
        sent = {name: fields[name] for name in RESOURCE_FIELDS if name in fields}
        metrics = msgspec.convert(sent, ResourceMetrics, strict=False)
    status = AgentStatus(fields["status"])
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
    )


def entries_of(agent: IndexedAgent) -> list[LogEntry]:
    """The log entries that would make the record agree with the index about this agent."""

    def transition(stream_id: StreamId, kind: TransitionKind, reason: Reason) -> LogEntry:
        return LogEntry(
            stream_id,
            Transition(
                agent_id=agent.heartbeat.agent_id,
                kind=kind,
                reason=reason,
                position=stream_id,
                at_ms=stream_id.ms,
                cordon=agent.cordon if kind is TransitionKind.CORDONED else None,
            ),
        )

    silent = Reason.SILENT if agent.status is AgentStatus.OFFLINE else Reason.HEARTBEAT
    entries = [
        LogEntry(agent.last_id, agent.heartbeat),
        transition(agent.last_id, TransitionKind(agent.status.value), silent),
    ]
    if agent.cordon_id is not None:
        kind = TransitionKind.UNCORDONED if agent.cordon is None else TransitionKind.CORDONED
        entries.append(transition(agent.cordon_id, kind, Reason.OPERATOR))
    return entries
