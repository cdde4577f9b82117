"""The registry of agents: listing, details, history, forgetting."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sqlalchemy import ColumnElement, Text, cast, delete, func, literal, select, update

from app.models.agent import (
    AgentFilter,
    AgentHistory,
    AgentPage,
    Event,
    RegisteredAgent,
    Sample,
)
from app.models.capacity import AgentStatus, Resources
from app.models.identity import AgentId, StreamId
from app.models.transition import Reason, TransitionKind
from app.record import rows
from app.record.connect import Database
from app.record.cordon import CORDON, OF_AGENT, lift_forgotten
from app.record.fold import slot_of
from app.record.tables import agent_events, agent_history, agent_registry
from app.settings import Settings

_agents: Final = agent_registry.c
_present: Final = _agents.forgotten_at.is_(None)


class RecordedAgents:
    """Implements AgentRecord."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._slot_length_ms = max(1, round(settings.history_every_s * 1000))

    async def list_agents(self, wanted: AgentFilter) -> AgentPage:
        statement = (
            select(*rows.REGISTERED, CORDON)
            .select_from(OF_AGENT)
            .where(_present, *_conditions(wanted))
            .order_by(_agents.agent_id)
            .limit(wanted.limit + 1)
        )
        async with self._database.reading() as connection:
            found = (await connection.execute(statement)).all()
        return AgentPage(
            agents=[rows.registered_of(row) for row in found[: wanted.limit]], more=len(found) > wanted.limit
        )

    async def agent(self, agent_id: AgentId) -> RegisteredAgent | None:
        async with self._database.reading() as connection:
            row = (
                await connection.execute(
                    select(*rows.REGISTERED, CORDON)
                    .select_from(OF_AGENT)
                    .where(_agents.agent_id == agent_id, _present)
                )
            ).one_or_none()
        return None if row is None else rows.registered_of(row)

    async def history(self, agent_id: AgentId, *, limit: int) -> AgentHistory | None:
        async with self._database.reading() as connection:
            newest = (
                await connection.execute(
                    select(
                        _agents.agent_id,
                        _agents.last_heartbeat_at.label("at"),
                        _agents.reported_status.label("status"),
                        rows.METRICS,
                    ).where(_agents.agent_id == agent_id, _present)
                )
            ).one_or_none()
            if newest is None:
                return None
            closed = await connection.execute(
                select(agent_history.c.agent_id, agent_history.c.at, agent_history.c.status, rows.SAMPLE_METRICS)
                # The newest sample is the agent's own row; its slot is still open.
                .where(
                    agent_history.c.agent_id == agent_id,
                    agent_history.c.slot_ms < slot_of(rows.ms_of(newest.at), self._slot_length_ms),
                )
                .order_by(agent_history.c.slot_ms.desc())
                .limit(limit - 1)
            )
            samples = _samples([newest, *closed])
            events = await connection.execute(
                select(
                    agent_events.c.agent_id,
                    agent_events.c.at,
                    agent_events.c.from_status,
                    agent_events.c.to_status,
                    agent_events.c.reason,
                    cast(agent_events.c.cordon, Text).label("cordon"),
                    agent_events.c.changes,
                    agent_events.c.last_at,
                )
                .where(
                    agent_events.c.agent_id == agent_id,
                    # A repetition is no event, unless it is what many changes led back to.
                    agent_events.c.from_status.is_distinct_from(agent_events.c.to_status)
                    | (agent_events.c.changes > 1),
                )
                .order_by(agent_events.c.entry_ms.desc(), agent_events.c.entry_n.desc())
                .limit(limit)
            )
            return AgentHistory(agent_id=agent_id, samples=samples, events=[_event(row) for row in events])

    async def forget(self, agent_id: AgentId, *, position: StreamId | None) -> bool:
        async with self._database.writing() as connection:
            row = (
                await connection.execute(
                    select(_agents.last_ms, _agents.last_n)
                    .where(_agents.agent_id == agent_id, _present)
                    .with_for_update()
                )
            ).one_or_none()
            if row is None:
                return False
            last_id = StreamId(row.last_ms, row.last_n)
            if position is not None and position < last_id:
                return True  # it came back before we were here
            # The greater id keeps out heartbeats that were sent before and are still to be recorded.
            last_id = position or last_id
            await connection.execute(
                update(agent_registry)
                .where(_agents.agent_id == agent_id)
                .values(
                    status=AgentStatus.OFFLINE.value,
                    forgotten_at=func.now(),
                    last_ms=last_id.ms,
                    last_n=last_id.n,
                    boot_id=None,
                    seq=None,
                    retired_boots=None,
                )
            )
            await connection.execute(delete(agent_history).where(agent_history.c.agent_id == agent_id))
            await lift_forgotten(connection, agent_id, position)
            return True

    async def ping(self) -> None:
        async with self._database.reading() as connection:
            await connection.execute(select(literal(1)))


def _conditions(wanted: AgentFilter) -> list[ColumnElement[bool]]:
    exact = {
        "agent_type": wanted.agent_type,
        "pool_name": wanted.pool_name,
        "status": wanted.status,
        "gpu_type": wanted.gpu_type,
        "hostname": wanted.hostname,
    }
    conditions: list[ColumnElement[bool]] = [
        _agents[name] == str(value) for name, value in exact.items() if value is not None
    ]
    if wanted.after is not None:
        conditions.append(_agents.agent_id > wanted.after)
    return conditions


def _samples(found: Iterable[rows.AnyRow]) -> list[Sample]:
    samples = []
    for row in found:
        try:
            resources, status = Resources.of(rows.metrics_of(row.resource_metrics)), AgentStatus(row.status)
        except rows.UNREADABLE:
            rows.report_malformed(row.agent_id)
            continue
        samples.append(Sample(at=row.at, status=status, resources=resources))
    return samples


def _event(row: rows.AnyRow) -> Event:
    try:
        cordon = rows.cordon_of(row.cordon)
    except rows.UNREADABLE:
        rows.report_malformed(row.agent_id)
        cordon = None
    return Event(
        at=row.at,
        from_status=None if row.from_status is None else TransitionKind(row.from_status),
        to_status=TransitionKind(row.to_status),
        reason=Reason(row.reason),
        cordon=cordon,
        changes=row.changes,
        last_at=row.last_at,
    )
