"""The chain of an agent's transitions: each starts from what the one before led to, in log order.

A late entry (taken over from a recorder that died) is put where it belongs. Repetitions are kept but hidden:
if one were dropped, a late entry that lands before it would leave the chain wrong for good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import bindparam, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from app.models.identity import AgentId, StreamId
from app.models.transition import Transition
from app.record.bulk import Bulk, Row
from app.record.rows import moment
from app.record.tables import agent_events


class Link(msgspec.Struct, frozen=True):
    """An event in the record: where it came from and what it led to."""

    from_status: str | None
    to_status: str


class Chained(msgspec.Struct, frozen=True):
    """Rows to insert, rows whose `from_status` changes, and how many of the inserted ones change a status."""

    new: list[Row]
    moved: list[Row]
    changes: int


def chain(
    transitions: Sequence[tuple[StreamId, Transition]],
    before: Mapping[AgentId, str],
    recorded: Mapping[AgentId, Mapping[StreamId, Link]],
) -> Chained:
    """Places transitions among the recorded ones.

    Args:
        transitions: with the ids of their log entries, in any order.
        before: per agent, what its last event before all of these led to.
        recorded: per agent, the recorded events from the first of these onwards.
    """
    by_agent: dict[AgentId, dict[StreamId, Transition]] = {}
    for entry_id, transition in transitions:
        if entry_id not in recorded.get(transition.agent_id, {}):
            by_agent.setdefault(transition.agent_id, {})[entry_id] = transition
    new: list[Row] = []
    moved: list[Row] = []
    changes = 0
    for agent_id, added in by_agent.items():
        known = recorded.get(agent_id, {})
        status = before.get(agent_id)
        for entry_id in sorted({*added, *known}):
            key = {"agent_id": agent_id, "entry_ms": entry_id.ms, "entry_n": entry_id.n}
            if entry_id in added:
                transition = added[entry_id]
                new.append(
                    {
                        **key,
                        "from_status": status,
                        "to_status": transition.kind.value,
                        "reason": transition.reason.value,
                        "at": moment(transition.at_ms),
                    }
                )
                changes += status != transition.kind
                status = transition.kind.value
            else:
                if known[entry_id].from_status != status:
                    moved.append({**key, "from_status": status})
                status = known[entry_id].to_status
    return Chained(new, moved, changes)


async def record_transitions(
    connection: AsyncConnection, bulk: Bulk, transitions: Sequence[tuple[StreamId, Transition]]
) -> int:
    """Returns how many changed a status. The caller holds the locks of the agents' rows."""
    if not transitions:
        return 0
    first = min(entry_id for entry_id, _ in transitions)
    agent_ids = sorted({transition.agent_id for _, transition in transitions})
    parameters: dict[str, Any] = {**bulk.parameters(agent_ids), "first_ms": first.ms, "first_n": first.n}
    events = agent_events.c
    boundary = tuple_(
        bindparam("first_ms", type_=events.entry_ms.type), bindparam("first_n", type_=events.entry_n.type)
    )
    here = tuple_(events.entry_ms, events.entry_n)

    wanted = bulk.agents()
    last = (
        select(events.to_status)
        .where(events.agent_id == wanted.c[0], here < boundary)
        .order_by(events.entry_ms.desc(), events.entry_n.desc())
        .limit(1)
        .scalar_subquery()
    )
    rows = await connection.execute(select(wanted.c[0].label("agent_id"), last.label("to_status")), parameters)
    before = {AgentId(row.agent_id): row.to_status for row in rows if row.to_status is not None}

    tail = select(events.agent_id, events.entry_ms, events.entry_n, events.from_status, events.to_status).where(
        bulk.among(events.agent_id), here >= boundary
    )
    recorded: dict[AgentId, dict[StreamId, Link]] = {}
    for row in await connection.execute(tail, parameters):
        links = recorded.setdefault(AgentId(row.agent_id), {})
        links[StreamId(row.entry_ms, row.entry_n)] = Link(row.from_status, row.to_status)

    chained = chain(transitions, before, recorded)
    await bulk.insert(connection, agent_events, chained.new)
    await bulk.update(connection, agent_events, chained.moved)
    return chained.changes
