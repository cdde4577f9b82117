"""What a rebuild of the index reads, and an audit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final

from sqlalchemy import select

from app.models.agent import RecordedState
from app.models.identity import AgentId, StreamId
from app.record import rows
from app.record.bulk import Bulk
from app.record.connect import Database
from app.record.cordon import CORDON, OF_AGENT
from app.record.tables import agent_cordons, agent_registry, record_positions

_EVERY: Final = (
    select(*rows.REGISTERED, *rows.ORDERED, CORDON, agent_cordons.c.entry_ms, agent_cordons.c.entry_n)
    .select_from(OF_AGENT)
    .where(agent_registry.c.forgotten_at.is_(None))
)


class RecordedStates:
    """Implements RecordReader."""

    def __init__(self, database: Database, bulk: Bulk) -> None:
        self._database = database
        self._bulk = bulk

    async def states(self, *, page_size: int) -> AsyncIterator[list[RecordedState]]:
        """A transaction per page: whoever takes the pages may take their time."""
        statement = _EVERY
        while True:
            async with self._database.reading() as connection:
                page = (
                    await connection.execute(statement.order_by(agent_registry.c.agent_id).limit(page_size))
                ).all()
            if page:
                yield [_state(row) for row in page]
            if len(page) < page_size:
                return
            statement = _EVERY.where(agent_registry.c.agent_id > page[-1].agent_id)

    async def some(self, agent_ids: Sequence[AgentId]) -> list[RecordedState]:
        """Those of these that are not forgotten."""
        if not agent_ids:
            return []
        statement = _EVERY.where(self._bulk.among(agent_registry.c.agent_id))
        async with self._database.reading() as connection:
            found = await connection.execute(statement, self._bulk.parameters(agent_ids))
            return [_state(row) for row in found]

    async def greatest_position(self) -> StreamId | None:
        statement = select(record_positions.c.ms, record_positions.c.n).where(record_positions.c.name == "entry")
        async with self._database.reading() as connection:
            row = (await connection.execute(statement)).one_or_none()
        return None if row is None else StreamId(row.ms, row.n)


def _state(row: rows.AnyRow) -> RecordedState:
    agent = rows.registered_of(row)
    return RecordedState(
        agent=agent,
        order=rows.order_of(row),
        cordon=agent.cordon,
        cordon_id=None if row.entry_ms is None else StreamId(row.entry_ms, row.entry_n),
    )
