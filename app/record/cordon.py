"""Cordons as the record keeps them: the newest of each agent, and an event for each that was set or lifted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from sqlalchemy import Select, Text, cast, literal, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.models.cordon import Cordon
from app.models.identity import AgentId, StreamId
from app.models.transition import Reason, Transition, TransitionKind
from app.record import rows
from app.record.bulk import Bulk, Row
from app.record.connect import Database
from app.record.tables import agent_cordons, agent_events, agent_registry

_ENTRY: Final = ("entry_ms", "entry_n")

CORDON: Final = cast(agent_cordons.c.cordon, Text).label("cordon")
OF_AGENT: Final = agent_registry.outerjoin(agent_cordons, agent_registry.c.agent_id == agent_cordons.c.agent_id)
"""The registry, with the cordon of each agent that ever had one."""


def cordoned_at(now_ms: int) -> Select[tuple[str]]:
    """Ids of the agents with a cordon in force: few, so a search reads them once and leaves them out."""
    cordons = agent_cordons.c
    return select(cordons.agent_id).where(
        cordons.cordon.is_not(None), cordons.expires_ms.is_(None) | (cordons.expires_ms > now_ms)
    )


class RecordedCordons:
    """Implements CordonRecord."""

    def __init__(self, database: Database, bulk: Bulk) -> None:
        self._database = database
        self._bulk = bulk

    async def set_cordon(self, agent_id: AgentId, cordon: Cordon | None, *, position: StreamId) -> None:
        await self.set_cordons({agent_id: position}, cordon)

    async def set_cordons(self, positions: Mapping[AgentId, StreamId], cordon: Cordon | None) -> None:
        kind = TransitionKind.UNCORDONED if cordon is None else TransitionKind.CORDONED
        transitions = [
            (
                position,
                Transition(
                    agent_id=agent_id,
                    kind=kind,
                    reason=Reason.OPERATOR,
                    position=position,
                    at_ms=position.ms,
                    cordon=cordon,
                ),
            )
            for agent_id, position in sorted(positions.items())
        ]
        async with self._database.writing() as connection:
            # The recorder writes the same rows once it has come so far in the log.
            await record_cordons(connection, self._bulk, transitions)
            await self._bulk.insert(connection, agent_events, [cordon_event(*each) for each in transitions])


async def record_cordons(
    connection: AsyncConnection, bulk: Bulk, transitions: Sequence[tuple[StreamId, Transition]]
) -> None:
    """Keeps what the last of these entries says of each agent, unless a later one is recorded already."""
    newest: dict[AgentId, tuple[StreamId, Transition]] = {}
    for entry_id, transition in transitions:
        if transition.kind in _SAYING and (
            transition.agent_id not in newest or newest[transition.agent_id][0] < entry_id
        ):
            newest[transition.agent_id] = (entry_id, transition)
    await bulk.insert(
        connection, agent_cordons, [_row(*newest[agent_id]) for agent_id in sorted(newest)], newer_by=_ENTRY
    )


async def lift_forgotten(connection: AsyncConnection, agent_id: AgentId, position: StreamId | None) -> None:
    """An agent forgotten at `position` has no cordon from before; None: whatever it has."""
    statement = update(agent_cordons).where(agent_cordons.c.agent_id == agent_id)
    if position is not None:
        statement = statement.where(
            tuple_(agent_cordons.c.entry_ms, agent_cordons.c.entry_n)
            < tuple_(
                literal(position.ms, agent_cordons.c.entry_ms.type),
                literal(position.n, agent_cordons.c.entry_n.type),
            )
        )
    await connection.execute(statement.values(cordon=None, expires_ms=None))


_SAYING: Final = (TransitionKind.CORDONED, TransitionKind.UNCORDONED, TransitionKind.FORGOTTEN)
"""What is said of an agent that is forgotten: it has no cordon when it comes back."""


def cordon_event(entry_id: StreamId, transition: Transition) -> Row:
    return {
        "agent_id": transition.agent_id,
        "entry_ms": entry_id.ms,
        "entry_n": entry_id.n,
        "from_status": None,
        "to_status": transition.kind.value,
        "reason": transition.reason.value,
        "at": rows.moment(transition.at_ms),
        "cordon": rows.cordon_document(transition.cordon),
        "flapping": False,
        "changes": 1,
        "last_at": None,
        "last_ms": entry_id.ms,
        "last_n": entry_id.n,
    }


def _row(entry_id: StreamId, transition: Transition) -> Row:
    cordon = transition.cordon if transition.kind is TransitionKind.CORDONED else None
    expires_at = None if cordon is None else cordon.expires_at
    return {
        "agent_id": transition.agent_id,
        "cordon": rows.cordon_document(cordon),
        "expires_ms": None if expires_at is None else rows.ms_of(expires_at),
        "entry_ms": entry_id.ms,
        "entry_n": entry_id.n,
    }
