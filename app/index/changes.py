"""Entries of the change feed as they read, and what a planner's own connection does with them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import unquote

from app.index.keys import Keys
from app.index.lookup import Steps
from app.index.session import Commands, Session
from app.models.capacity import AgentStatus, CapacityPage, CapacityQuery
from app.models.change import Change, ChangeKind
from app.models.identity import AgentId, StreamId

_BATCH: Final = 500
_LOOK_EVERY_S: Final = 5.0


_KINDS: Final = {kind.value: kind for kind in ChangeKind}


def parse_change(
    entry_id: bytes, fields: Mapping[bytes, bytes], *, unreadable: Callable[[StreamId], None] = lambda _: None
) -> Change:
    """One entry. One that cannot be read is a reset: whoever follows the feed does not know everything any more.

    An agent's change of a kind that only a later version knows counts as one of capacity, which it tells as well.
    """
    version = StreamId.parse(entry_id)
    try:
        return _read_change(version, fields)
    except (KeyError, ValueError):
        unreadable(version)
        return Change(version=version, kind=ChangeKind.RESET)


def _read_change(version: StreamId, fields: Mapping[bytes, bytes]) -> Change:
    kind, agent_id = _KINDS.get(fields[b"kind"].decode()), fields.get(b"agent_id", b"").decode()
    if not agent_id:
        if kind is None:
            raise ValueError("a kind of change that names no agent and is not known")
        return Change(version=version, kind=kind)
    vram, _, cores = fields[b"figures"].decode().partition(" ")
    return Change(
        version=version,
        kind=kind or ChangeKind.CAPACITY,
        agent_id=AgentId(agent_id),
        agent_type=fields[b"agent_type"].decode(),
        pool_name=unquote(fields[b"pool"].decode()),
        placeable=bool(cores),
        gpu_vram_available_gb=float(vram or 0.0),
        cpu_cores_available=int(cores or 0),
        status=AgentStatus(fields[b"status"].decode()),
    )


def may_help(query: CapacityQuery, change: Change) -> bool:
    """Whether a search that found nothing may find something after this change."""
    if change.agent_id is None:
        return True
    return (
        change.placeable
        and change.agent_type == query.agent_type
        and query.pool_name in {None, change.pool_name}
        and change.gpu_vram_available_gb >= query.min_gpu_vram_gb
        and change.cpu_cores_available >= query.min_cpu_cores
    )


def newest(keys: Keys) -> Commands[StreamId]:
    (reply,) = yield [("XREVRANGE", keys.events, "+", "-", "COUNT", 1)]
    return StreamId.parse(reply[0][0]) if reply else StreamId(0)


def read(keys: Keys, after: StreamId, *, block_s: float) -> Commands[list[Change]]:
    """What comes after a version; begins with a reset where something in between is no longer there."""
    first, last = yield [
        ("XRANGE", keys.events, "-", "+", "COUNT", 1),
        ("XREVRANGE", keys.events, "+", "-", "COUNT", 1),
    ]
    gone = not first or StreamId.parse(first[0][0]) > after or StreamId.parse(last[0][0]) < after
    lost = gone and after != StreamId(0)
    start = StreamId(0) if lost else after
    (reply,) = yield [("XREAD", "COUNT", _BATCH, "BLOCK", _ms(block_s), "STREAMS", keys.events, str(start))]
    rows: list[Any] = reply[0][1] if reply else []
    changes = [parse_change(row[0], dict(zip(row[1][::2], row[1][1::2], strict=True))) for row in rows]
    if lost and not (changes and changes[0].kind is ChangeKind.RESET):
        return [Change(version=start, kind=ChangeKind.RESET), *changes]
    return changes


def _ms(seconds: float) -> int:
    """At least 1: Redis takes 0 for ever."""
    return max(1, round(seconds * 1000))


def wait(
    session: Session,
    keys: Keys,
    query: CapacityQuery,
    steps: Callable[[CapacityQuery], Steps[CapacityPage]],
    *,
    deadline: float,
    block_s: float,
) -> Commands[CapacityPage]:
    """Looks until something fits or it is late; in between it reads the feed, `block_s` at a time.

    The version is taken before the first look, so nothing that happens after that look goes by unnoticed.
    """
    after = yield from newest(keys)
    while True:
        page = yield from session.find(query, steps(query))
        look_at = time.monotonic() + _LOOK_EVERY_S
        helped = False
        while not helped and not page.agents and time.monotonic() < min(deadline, look_at):
            left_s = min(deadline, look_at) - time.monotonic()
            (reply,) = yield [
                ("XREAD", "COUNT", _BATCH, "BLOCK", _ms(min(block_s, left_s)), "STREAMS", keys.events, str(after))
            ]
            for entry_id, flat in reply[0][1] if reply else ():
                change = parse_change(entry_id, dict(zip(flat[::2], flat[1::2], strict=True)))
                after = change.version
                helped = helped or may_help(query, change)
        if page.agents or time.monotonic() >= deadline:
            return page
