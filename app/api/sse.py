"""Changes as server-sent events: what a listener reads of each."""

from __future__ import annotations

import msgspec

from app.models.capacity import AgentStatus
from app.models.change import Change, ChangeKind

_encode = msgspec.json.Encoder().encode


class ChangeDocument(msgspec.Struct, frozen=True):
    """The `data` of an event. `reset` and `rebuild` concern all agents and name none."""

    kind: ChangeKind
    agent_id: str | None
    agent_type: str | None
    pool_name: str | None
    placeable: bool
    gpu_vram_available_gb: float
    cpu_cores_available: int
    status: AgentStatus | None


def encode_change(change: Change) -> bytes:
    named = change.agent_id is not None
    document = ChangeDocument(
        change.kind,
        change.agent_id,
        change.agent_type if named else None,
        change.pool_name if named else None,
        change.placeable,
        change.gpu_vram_available_gb,
        change.cpu_cores_available,
        change.status,
    )
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (
        str(change.version).encode(),
        change.kind.value.encode(),
        _encode(document),
    )
