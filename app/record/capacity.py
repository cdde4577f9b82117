"""Capacity answered from the record: the same agents in the same order as from the index."""

from __future__ import annotations

from typing import Final

from sqlalchemy import ColumnElement, func, literal, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from app.models.capacity import (
    MAX_CORES,
    AgentCapacity,
    AgentStatus,
    AvailableCapacity,
    CapacityPage,
    CapacityQuery,
    Cursor,
    Resources,
)
from app.models.heartbeat import ResourceMetrics
from app.models.identity import AgentId, StreamId
from app.record import rows
from app.record.connect import Database
from app.record.cordon import cordoned_at
from app.record.tables import AGENT_UUID, agent_registry, record_positions
from app.service.ports import RecordSession
from app.settings import Settings

_agents: Final = agent_registry.c
_FOUND: Final = (
    _agents.agent_id,
    _agents.agent_type,
    _agents.pool_name,
    _agents.status,
    _agents.gpu_vram_available_gb,
    _agents.cpu_cores_available,
    _agents.last_heartbeat_at,
    rows.METRICS,
)


class RecordedCapacity:
    """Implements CapacityRecord."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._offline_after_ms = round(settings.offline_after_s * 1000)

    async def find(
        self,
        query: CapacityQuery,
        *,
        seen_since_ms: int,
        now_ms: int | None = None,
        session: RecordSession | None = None,
    ) -> CapacityPage:
        wanted = self._conditions(query, seen_since_ms, now_ms)
        async with self._database.reading(session) as connection:
            newest = await _newest_heartbeat(connection)
            found = await self._page(connection, query, wanted)
            total = None
            if query.counted:
                total = await connection.scalar(select(func.count()).select_from(agent_registry).where(*wanted))
        return CapacityPage(
            agents=found[: query.limit],
            more=len(found) > query.limit,
            total=total,
            source="record",
            as_of=None if newest is None else rows.moment(newest.ms),
        )

    async def get(
        self, agent_id: AgentId, *, seen_since_ms: int, session: RecordSession | None = None
    ) -> AgentCapacity | None:
        statement = select(
            _agents.agent_id, _agents.status, _agents.last_ms, _agents.last_heartbeat_at, rows.METRICS
        )
        async with self._database.reading(session) as connection:
            result = await connection.execute(
                statement.where(_agents.agent_id == agent_id, _agents.forgotten_at.is_(None))
            )
            row = result.one_or_none()
        if row is None:
            return None
        resources = Resources.of(_readable_metrics(row))
        silent = row.last_ms < seen_since_ms
        return AgentCapacity(
            agent_id=agent_id,
            status=AgentStatus.OFFLINE if silent else AgentStatus(row.status),
            cpu_cores_available=resources.cpu_cores_available,
            cpu_cores_physical=resources.cpu_cores_physical,
            cpu_load_1min=resources.cpu_load_1min,
            cpu_load_5min=resources.cpu_load_5min,
            cpu_percent=resources.cpu_percent,
            memory_available_gb=resources.memory_available_gb,
            memory_percent=resources.memory_percent,
            gpu_vram_available_gb=resources.gpu_vram_available_gb,
            gpu_vram_total_gb=resources.gpu_vram_total_gb,
            gpu_type=resources.gpu_type,
            timestamp=row.last_heartbeat_at,
        )

    async def newest_heartbeat(self, *, session: RecordSession | None = None) -> StreamId | None:
        async with self._database.reading(session) as connection:
            return await _newest_heartbeat(connection)

    async def _page(
        self, connection: AsyncConnection, query: CapacityQuery, wanted: list[ColumnElement[bool]]
    ) -> list[AvailableCapacity]:
        """One row more than the limit, where there is one; rows that cannot be read make no answer short."""
        order = (_agents.gpu_vram_available_gb.desc(), _agents.agent_id.desc())
        found: list[AvailableCapacity] = []
        after = query.after
        while (missing := query.limit + 1 - len(found)) > 0:
            statement = select(*_FOUND).where(*wanted, *_below(after)).order_by(*order).limit(missing)
            page = (await connection.execute(statement)).all()
            found += [row for row in map(_available, page) if row is not None]
            if len(page) < missing:
                break
            after = Cursor(page[-1].gpu_vram_available_gb, AgentId(page[-1].agent_id))
        return found

    def _conditions(
        self, query: CapacityQuery, seen_since_ms: int, now_ms: int | None
    ) -> list[ColumnElement[bool]]:
        since_ms, present_ms = seen_since_ms, seen_since_ms + self._offline_after_ms
        if query.max_age_s is not None:
            since_ms = max(since_ms, present_ms - round(query.max_age_s * 1000))
        conditions = [
            # As in the partial index; a tombstone is offline too.
            _agents.status == literal(AgentStatus.ONLINE.value, literal_execute=True),
            _agents.has_metrics,
            _agents.agent_type == query.agent_type,
            _agents.gpu_vram_available_gb >= query.min_gpu_vram_gb,
            # Beyond 32 bits the driver would refuse what no agent has anyway.
            _agents.cpu_cores_available >= min(max(1, query.min_cpu_cores), MAX_CORES + 1),
            _agents.last_ms >= since_ms,
            _agents.agent_id.not_in(cordoned_at(present_ms if now_ms is None else now_ms)),
        ]
        if query.pool_name is not None:
            conditions.append(_agents.pool_name == query.pool_name)
        if query.gpu_type is not None:
            conditions.append(_agents.gpu_type == query.gpu_type.value)
        if query.min_memory_gb > 0.0:
            conditions.append(_agents.memory_available_gb >= query.min_memory_gb)
        return conditions


def _below(cursor: Cursor | None) -> list[ColumnElement[bool]]:
    if cursor is None:
        return []
    last = tuple_(
        literal(cursor.gpu_vram_available_gb, _agents.gpu_vram_available_gb.type),
        literal(cursor.agent_id, AGENT_UUID),
    )
    return [tuple_(_agents.gpu_vram_available_gb, _agents.agent_id) < last]


def _available(row: rows.AnyRow) -> AvailableCapacity | None:
    try:
        resources = Resources.of(rows.metrics_of(row.resource_metrics))
    except rows.UNREADABLE:
        rows.report_malformed(row.agent_id)
        return None
    return AvailableCapacity(
        agent_id=AgentId(row.agent_id),
        agent_type=row.agent_type,
        pool_name=row.pool_name,
        status=AgentStatus(row.status),
        gpu_vram_available_gb=row.gpu_vram_available_gb,
        cpu_cores_available=row.cpu_cores_available,
        cpu_load_1min=resources.cpu_load_1min,
        last_heartbeat_at=row.last_heartbeat_at,
    )


def _readable_metrics(row: rows.AnyRow) -> ResourceMetrics | None:
    try:
        return rows.metrics_of(row.resource_metrics)
    except rows.UNREADABLE:
        rows.report_malformed(row.agent_id)
        return None


async def _newest_heartbeat(connection: AsyncConnection) -> StreamId | None:
    position = record_positions.c
    statement = select(position.ms, position.n).where(position.name == "heartbeat", position.ms > 0)
    newest = (await connection.execute(statement)).one_or_none()
    return None if newest is None else StreamId(newest.ms, newest.n)
