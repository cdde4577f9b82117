"""What a lookup asks of Redis and how its replies read: shared by the service's index and the planner's client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from app.index.keys import Keys, encode_pool
from app.index.placement import RESOURCE_FIELDS, from_ms
from app.index.scripts import Call, load
from app.models.capacity import AgentCapacity, AgentStatus, CapacityQuery, Cursor, Resources
from app.models.identity import AgentId

SLICE: Final = 128
"""Most agents of one set that a single script call looks at: about a millisecond of Redis's time."""


class Slice(msgspec.Struct, frozen=True):
    """One answer of find.lua; a row is id, `seen` in ms, document."""

    rows: list[tuple[AgentId, int, bytes]]
    more: bool
    silent: int
    total: int | None
    last: Cursor | None


def find_call(
    keys: Keys,
    query: CapacityQuery,
    *,
    epoch: str,
    now_ms: int | None,
    offline_after_ms: int,
    limit: int,
    after: Cursor | None,
    with_total: bool,
    wide: bool,
) -> Call:
    """One slice of a search.

    A `wide` one looks at SLICE agents for however few it returns: for a search whose candidates are being
    passed over, because they are silent or a filter that the sets do not know refuses them.
    """
    filtered = query.gpu_type is not None or query.min_memory_gb > 0 or query.max_age_s is not None
    limit = min(limit, SLICE)
    return Call(
        load("find"),
        keys.prefix,
        (
            "" if now_ms is None else now_ms,
            offline_after_ms,
            epoch,
            query.agent_type,
            "" if query.pool_name is None else encode_pool(query.pool_name),
            repr(query.min_gpu_vram_gb),
            query.min_cpu_cores,
            limit,
            "" if after is None else repr(after.gpu_vram_available_gb),
            "" if after is None else after.agent_id,
            "" if query.gpu_type is None else query.gpu_type.value,
            repr(query.min_memory_gb) if query.min_memory_gb > 0 else "",
            "" if query.max_age_s is None else round(query.max_age_s * 1000),
            # One more than wanted tells whether there is more.
            SLICE if wide or filtered else limit + 1,
            int(with_total),
        ),
    )


def parse_find(reply: list[Any]) -> Slice:
    last_id = reply[5].decode()
    return Slice(
        rows=[
            (AgentId(reply[i].decode()), int(float(reply[i + 1])), reply[i + 2]) for i in range(6, len(reply), 3)
        ],
        more=bool(reply[1]),
        silent=reply[2],
        total=None if reply[3] < 0 else reply[3],
        last=Cursor(float(reply[4]), AgentId(last_id)) if last_id else None,
    )


def get_call(keys: Keys, agent_id: AgentId, *, epoch: str, now_ms: int | None, offline_after_ms: int) -> Call:
    return Call(
        load("get"),
        keys.prefix,
        ("" if now_ms is None else now_ms, offline_after_ms, epoch, agent_id, *RESOURCE_FIELDS),
    )


def parse_get(agent_id: AgentId, reply: Sequence[Any]) -> AgentCapacity | None:
    """Raises msgspec.ValidationError when the agent's fields cannot be read."""
    if reply[0] == b"none":
        return None
    texts = [None if value is None else value.decode() for value in reply[3:]]
    fields = {name: text for name, text in zip(("status", *RESOURCE_FIELDS), texts, strict=True) if text}
    status = AgentStatus(fields.pop("status"))
    resources = msgspec.convert(fields, Resources, strict=False)
    return AgentCapacity(
        agent_id=agent_id,
        status=status if reply[2] else AgentStatus.OFFLINE,
        timestamp=from_ms(int(float(reply[1]))),
        **msgspec.structs.asdict(resources),
    )
