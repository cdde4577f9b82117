"""The recorder's side of the record: batches of log entries, and retention."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from sqlalchemy import Column, Table, delete, insert, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from app.models.identity import AgentId, StreamId
from app.models.log import Gap, LogEntry
from app.models.order import Outcome
from app.record import rows
from app.record.bulk import Bulk, Row
from app.record.chain import record_transitions
from app.record.connect import Database
from app.record.cordon import record_cordons
from app.record.failures import DRIVER_ERRORS, OvertakenError, is_bad_row, is_collision, translated
from app.record.fold import AgentState, Fold
from app.record.plan import thin_plans
from app.record.registry import STATE, Written, order_row, state_of, status_row, whole_row, written_of
from app.record.tables import agent_events, agent_history, agent_registry, record_gaps, record_positions
from app.settings import Settings
from app.telemetry import RECORDED, TRANSITIONS, logger

_log = logger(__name__)

_TRIES: Final = 5
_THIN_SLICE: Final = 2_000
_THIN_SLICES: Final = 50
"""One call deletes at most this many slices of each table; the next call goes on."""

_LAST_ID: Final = ("last_ms", "last_n")
_DAY_MS: Final = 86_400_000


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """What a batch did.

    Attributes:
        outcomes: heartbeats by outcome.
        transitions: status changes that became part of an agent's chain.
        rejected: entries that the database refuses whatever happens, each with the reason.
    """

    outcomes: Mapping[Outcome, int]
    transitions: int = 0
    rejected: tuple[tuple[StreamId, str], ...] = ()

    @property
    def applied(self) -> int:
        return self.outcomes.get(Outcome.APPLIED, 0)

    @property
    def ignored(self) -> int:
        return sum(self.outcomes.values()) - self.applied


class Writer:
    """Implements RecordWriter."""

    def __init__(self, database: Database, bulk: Bulk, settings: Settings) -> None:
        self._database = database
        self._bulk = bulk
        self._offline_after_ms = round(settings.offline_after_s * 1000)
        self._slot_length_ms = max(1, round(settings.history_every_s * 1000))
        self._history_keep_ms = round(settings.history_keep_d * _DAY_MS)
        self._events_keep_ms = round(settings.events_keep_d * _DAY_MS)

    async def write(self, entries: Sequence[LogEntry]) -> Batch:
        ordered = sorted(entries, key=lambda entry: entry.stream_id)
        with translated():
            batch = await self._write_splitting(ordered)
        for outcome, count in batch.outcomes.items():
            RECORDED.labels(outcome=outcome.value).inc(count)
        TRANSITIONS.inc(batch.transitions)
        return batch

    async def mark_gap(self, gap: Gap) -> None:
        """A gap that grows keeps its beginning: the later note replaces the earlier one."""
        began = (record_gaps.c.first_ms == gap.first.ms, record_gaps.c.first_n == gap.first.n)
        row = {
            "first_ms": gap.first.ms,
            "first_n": gap.first.n,
            "last_ms": gap.last.ms,
            "last_n": gap.last.n,
            "entries": gap.entries,
        }
        with translated():
            async with self._database.writing() as connection:
                await connection.execute(delete(record_gaps).where(*began))
                await connection.execute(insert(record_gaps).values(row))

    async def _write_splitting(self, entries: Sequence[LogEntry]) -> Batch:
        """One transaction; only a batch with a row that the database refuses is halved until that row is alone."""
        if not entries:
            return Batch(outcomes={})
        try:
            return await self._write_retrying(entries)
        except DRIVER_ERRORS as error:
            if not is_bad_row(error):
                raise
            if len(entries) == 1:
                _log.warning(
                    "Rejected a log entry", stream_id=str(entries[0].stream_id), error=type(error).__name__
                )
                return Batch(outcomes={}, rejected=((entries[0].stream_id, "the record refuses a value in it"),))
        half = len(entries) // 2
        first = await self._write_splitting(entries[:half])
        second = await self._write_splitting(entries[half:])
        return Batch(
            outcomes={each: first.outcomes.get(each, 0) + second.outcomes.get(each, 0) for each in Outcome},
            transitions=first.transitions + second.transitions,
            rejected=first.rejected + second.rejected,
        )

    async def _write_retrying(self, entries: Sequence[LogEntry]) -> Batch:
        tried = 1
        while True:
            try:
                async with self._database.colliding() as connection:
                    return await self._write(connection, entries)
            except DRIVER_ERRORS as error:
                if tried == _TRIES or not is_collision(error):
                    raise
            # Two recorders that collided would collide again if they waited equally long.
            await asyncio.sleep(random.uniform(0.01, 0.05) * tried)  # noqa: S311  jitter, not a secret
            tried += 1

    async def _write(self, connection: AsyncConnection, entries: Sequence[LogEntry]) -> Batch:
        agent_ids = sorted({entry.body.agent_id for entry in entries if entry.body is not None})
        states = await self._lock(connection, agent_ids)
        before = {agent_id: written_of(state) for agent_id, state in states.items()}
        fold = Fold(states, offline_after_ms=self._offline_after_ms, slot_length_ms=self._slot_length_ms)
        fold.take(entries)
        await self._write_registry(connection, fold, before)
        await self._write_history(connection, fold)
        await record_cordons(connection, self._bulk, fold.transitions)
        transitions = await record_transitions(connection, self._bulk, fold.transitions)
        # Last: every recorder updates these rows, and each waits for the one before until its commit.
        await self._write_positions(connection, entry=entries[-1].stream_id, heartbeat=fold.newest_heartbeat)
        return Batch(outcomes=fold.outcomes, transitions=transitions)

    async def _lock(self, connection: AsyncConnection, agent_ids: Sequence[AgentId]) -> dict[AgentId, AgentState]:
        """Reads the rows of these agents and keeps other writers off them until the commit.

        Always by ascending id: two recorders that lock in different orders would wait for each other.
        """
        statement = (
            select(*STATE)
            .where(self._bulk.among(agent_registry.c.agent_id))
            .order_by(agent_registry.c.agent_id)
            .with_for_update()
        )
        found = await connection.execute(statement, self._bulk.parameters(agent_ids))
        return {AgentId(row.agent_id): state_of(row) for row in found}

    async def _write_registry(
        self, connection: AsyncConnection, fold: Fold, before: Mapping[AgentId, Written]
    ) -> None:
        """Writes only what changed: most heartbeats say what the one before said.

        Raises:
            OvertakenError: another recorder registered one of these agents since they were locked.
        """
        new: list[Row] = []
        rewritten: list[Row] = []
        refreshed: list[Row] = []
        marked: list[Row] = []
        for agent_id in sorted(fold.touched | fold.marked):
            state = fold.states[agent_id]
            if agent_id not in before:
                new.append(whole_row(state))
            elif agent_id not in fold.touched:
                marked.append(status_row(state))
            elif before[agent_id] == written_of(state):
                refreshed.append(order_row(state))
            else:
                rewritten.append(whole_row(state))
        written = await self._bulk.insert(connection, agent_registry, new)
        for changed in (rewritten, refreshed, marked):
            written += await self._bulk.update(connection, agent_registry, changed, not_above=_LAST_ID)
        if written != len(new) + len(rewritten) + len(refreshed) + len(marked):
            raise OvertakenError

    async def _write_history(self, connection: AsyncConnection, fold: Fold) -> None:
        if fold.erased:
            await connection.execute(
                delete(agent_history).where(self._bulk.among(agent_history.c.agent_id)),
                self._bulk.parameters(sorted(fold.erased)),
            )
        samples: list[Row] = [
            {
                "agent_id": sample.agent_id,
                "slot_ms": sample.slot_ms,
                "at": rows.moment(sample.at_ms),
                "status": sample.status.value,
                "resource_metrics": rows.metrics_document(sample.metrics),
            }
            for agent_id in sorted(fold.samples)
            for sample in fold.samples[agent_id]
        ]
        await self._bulk.insert(connection, agent_history, samples, newer_by=("at",))

    async def _write_positions(self, connection: AsyncConnection, **positions: StreamId) -> None:
        await self._bulk.insert(
            connection,
            record_positions,
            [{"name": name, "ms": positions[name].ms, "n": positions[name].n} for name in sorted(positions)],
            newer_by=("ms", "n"),
        )

    async def thin(self) -> int:
        async with self._database.reading() as connection:
            newest = await connection.scalar(
                select(record_positions.c.ms).where(record_positions.c.name == "entry")
            )
        if newest is None:
            return 0
        # By the log's own time: a clock that jumps forward must not delete what is not old.
        deleted = await self._thin(agent_history, agent_history.c.slot_ms, newest - self._history_keep_ms)
        deleted += await self._thin(agent_events, agent_events.c.entry_ms, newest - self._events_keep_ms)
        return deleted + await thin_plans(self._database, before=rows.moment(newest - self._events_keep_ms))

    async def _thin(self, table: Table, column: Column[int], below_ms: int) -> int:
        """A transaction per slice: neither locks nor the log of the database grow with what there is to delete."""
        key = tuple(table.primary_key.columns)
        slice_ = select(*key).where(column < below_ms).order_by(column).limit(_THIN_SLICE)
        statement = delete(table).where(tuple_(*key).in_(slice_.with_for_update(skip_locked=True)))
        deleted = 0
        for _ in range(_THIN_SLICES):
            async with self._database.writing() as connection:
                count = (await connection.execute(statement)).rowcount
            deleted += count
            if count < _THIN_SLICE:
                break
        return deleted
