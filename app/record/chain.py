"""The chain of an agent's transitions: each starts from what the one before led to, in log order.

A late entry (taken over from a recorder that died) is put where it belongs. Repetitions are kept but hidden:
if one were dropped, a late entry that lands before it would leave the chain wrong for good. The changes of a
flapping agent are one event with a count. Cordons are events beside the chain: they change no status.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import msgspec
from sqlalchemy import bindparam, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from app.models.identity import AgentId, StreamId
from app.models.transition import Transition, TransitionKind
from app.record.bulk import Bulk, Row
from app.record.cordon import cordon_event
from app.record.rows import AnyRow, moment
from app.record.tables import agent_events

_CORDONS: Final = (TransitionKind.CORDONED, TransitionKind.UNCORDONED)
_LINK: Final = ("entry_ms", "entry_n", "from_status", "to_status", "flapping", "changes", "last_ms", "last_n")


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """An event in the record: where it came from, what it led to, and up to which entry it is kept as one."""

    entry_id: StreamId
    from_status: str | None
    to_status: str
    flapping: bool = False
    changes: int = 1
    last_id: StreamId = StreamId(0)


class Chained(msgspec.Struct, frozen=True):
    """Rows to insert, rows whose `from_status` changes, rows that took further changes in; status changes."""

    new: list[Row]
    moved: list[Row]
    grown: list[Row]
    changes: int


@dataclass(slots=True)
class _Event:
    """The end of the chain so far."""

    key: Row
    link: Link
    row: dict[str, Any] | None = None
    grown: bool = False
    reason: str = ""
    last_at: datetime | None = None

    def take_in(self, entry_id: StreamId, transition: Transition) -> None:
        self.link = msgspec.structs.replace(
            self.link, to_status=transition.kind.value, changes=self.link.changes + 1, last_id=entry_id
        )
        self.reason, self.last_at = transition.reason.value, moment(transition.at_ms)
        if self.row is None:
            self.grown = True
        else:
            self.row |= self.growth()

    def growth(self) -> Row:
        return {
            "to_status": self.link.to_status,
            "reason": self.reason,
            "changes": self.link.changes,
            "last_at": self.last_at,
            "last_ms": self.link.last_id.ms,
            "last_n": self.link.last_id.n,
        }


def chain(
    transitions: Sequence[tuple[StreamId, Transition]],
    before: Mapping[AgentId, Link],
    recorded: Mapping[AgentId, Mapping[StreamId, Link]],
) -> Chained:
    """Places changes of status among the recorded ones.

    Args:
        transitions: with the ids of their log entries, in any order.
        before: per agent, its last event before all of these.
        recorded: per agent, the recorded events from the first of these onwards.
    """
    by_agent: dict[AgentId, dict[StreamId, Transition]] = {}
    for entry_id, transition in transitions:
        if entry_id not in recorded.get(transition.agent_id, {}):
            by_agent.setdefault(transition.agent_id, {})[entry_id] = transition
    chained = Chained([], [], [], 0)
    changes = sum(
        _chain_one(agent_id, added, before.get(agent_id), recorded.get(agent_id, {}), chained)
        for agent_id, added in by_agent.items()
    )
    return msgspec.structs.replace(chained, changes=changes)


def _chain_one(
    agent_id: AgentId,
    added: Mapping[StreamId, Transition],
    before: Link | None,
    known: Mapping[StreamId, Link],
    chained: Chained,
) -> int:
    events = [] if before is None else [_Event(_key(agent_id, before.entry_id), before)]
    changes = 0
    for entry_id in sorted({*added, *known}):
        end = events[-1] if events else None
        status = None if end is None else end.link.to_status
        if entry_id in known:
            link = known[entry_id]
            if link.from_status != status:
                chained.moved.append({**_key(agent_id, entry_id), "from_status": status})
            events.append(_Event(_key(agent_id, entry_id), link))
            continue
        transition = added[entry_id]
        if end is not None and entry_id <= end.link.last_id:
            continue  # the event that is kept for many has it
        changes += status != transition.kind
        if end is not None and end.link.flapping and transition.flapping:
            end.take_in(entry_id, transition)
            continue
        row = _row(agent_id, entry_id, transition, status)
        chained.new.append(row)
        link = Link(
            entry_id=entry_id,
            from_status=status,
            to_status=transition.kind.value,
            flapping=transition.flapping,
            last_id=entry_id,
        )
        events.append(_Event(_key(agent_id, entry_id), link, row))
    chained.grown.extend({**event.key, **event.growth()} for event in events if event.grown)
    return changes


def _key(agent_id: AgentId, entry_id: StreamId) -> Row:
    return {"agent_id": agent_id, "entry_ms": entry_id.ms, "entry_n": entry_id.n}


def _row(agent_id: AgentId, entry_id: StreamId, transition: Transition, status: str | None) -> dict[str, Any]:
    return {
        **_key(agent_id, entry_id),
        "from_status": status,
        "to_status": transition.kind.value,
        "reason": transition.reason.value,
        "at": moment(transition.at_ms),
        "cordon": None,
        "flapping": transition.flapping,
        "changes": 1,
        "last_at": None,
        "last_ms": entry_id.ms,
        "last_n": entry_id.n,
    }


async def record_transitions(
    connection: AsyncConnection, bulk: Bulk, transitions: Sequence[tuple[StreamId, Transition]]
) -> int:
    """Returns how many changed a status. The caller holds the locks of the agents' rows."""
    await bulk.insert(
        connection,
        agent_events,
        [cordon_event(entry_id, one) for entry_id, one in transitions if one.kind in _CORDONS],
    )
    changes = [(entry_id, one) for entry_id, one in transitions if one.kind not in _CORDONS]
    if not changes:
        return 0
    chained = chain(changes, *await _recorded(connection, bulk, changes))
    await bulk.insert(connection, agent_events, chained.new)
    await bulk.update(connection, agent_events, chained.moved)
    await bulk.update(connection, agent_events, chained.grown)
    return chained.changes


async def _recorded(
    connection: AsyncConnection, bulk: Bulk, transitions: Sequence[tuple[StreamId, Transition]]
) -> tuple[dict[AgentId, Link], dict[AgentId, dict[StreamId, Link]]]:
    """Each agent's last event before the first of these entries, and its events from there on."""
    first = min(entry_id for entry_id, _ in transitions)
    agent_ids = sorted({transition.agent_id for _, transition in transitions})
    parameters: dict[str, Any] = {**bulk.parameters(agent_ids), "first_ms": first.ms, "first_n": first.n}
    events = agent_events.c
    boundary = tuple_(
        bindparam("first_ms", type_=events.entry_ms.type), bindparam("first_n", type_=events.entry_n.type)
    )
    here = tuple_(events.entry_ms, events.entry_n)
    chained = events.to_status.not_in([kind.value for kind in _CORDONS])

    wanted = bulk.agents()
    last = [
        select(events[name])
        .where(events.agent_id == wanted.c[0], here < boundary, chained)
        .order_by(events.entry_ms.desc(), events.entry_n.desc())
        .limit(1)
        .scalar_subquery()
        .label(name)
        for name in _LINK
    ]
    rows = await connection.execute(select(wanted.c[0].label("agent_id"), *last), parameters)
    before = {AgentId(row.agent_id): _link(row) for row in rows if row.to_status is not None}

    tail = select(events.agent_id, *(events[name] for name in _LINK)).where(
        bulk.among(events.agent_id), here >= boundary, chained
    )
    recorded: dict[AgentId, dict[StreamId, Link]] = {}
    for row in await connection.execute(tail, parameters):
        link = _link(row)
        recorded.setdefault(AgentId(row.agent_id), {})[link.entry_id] = link
    return before, recorded


def _link(row: AnyRow) -> Link:
    entry_id = StreamId(row.entry_ms, row.entry_n)
    return Link(
        entry_id=entry_id,
        from_status=row.from_status,
        to_status=row.to_status,
        flapping=row.flapping,
        changes=row.changes,
        last_id=max(entry_id, StreamId(row.last_ms, row.last_n)),
    )
