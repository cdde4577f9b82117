"""The change feed: one entry per applied change that somebody can see."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from app.models.capacity import AgentStatus
from app.models.identity import AgentId, StreamId


class ChangeKind(StrEnum):
    """What changed: where an agent stands in the sets, its status, its cordon, or everything.

    `reset`: the feed begins here, what was known before no longer counts. `rebuild`: the index is complete and
    trusted again; neither names an agent.
    """

    RESET = "reset"
    CAPACITY = "capacity"
    STATUS = "status"
    CORDON = "cordon"
    UNCORDON = "uncordon"
    FORGOTTEN = "forgotten"
    REBUILD = "rebuild"


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the feed.

    Attributes:
        version: its id in the feed; only grows.
        kind: what changed.
        placeable: whether searches find the agent from now on. Replaying it with the two figures below from an
            empty model gives the index.
        gpu_vram_available_gb: as indexed; 0.0 when not placeable.
        cpu_cores_available: as indexed; 0 when not placeable.
        status: the agent's status after the change.
    """

    version: StreamId
    kind: ChangeKind
    agent_id: AgentId | None = None
    agent_type: str = ""
    pool_name: str = ""
    placeable: bool = False
    gpu_vram_available_gb: float = 0.0
    cpu_cores_available: int = 0
    status: AgentStatus | None = None


class EventFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which changes a listener wants; None: any. What concerns all agents passes whatever the type and pool."""

    agent_type: str | None = None
    pool_name: str | None = None
    kinds: frozenset[ChangeKind] | None = None

    def wants(self, change: Change) -> bool:
        if change.kind is ChangeKind.RESET:
            return True
        if self.kinds is not None and change.kind not in self.kinds:
            return False
        return change.agent_id is None or (
            (self.agent_type is None or change.agent_type == self.agent_type)
            and (self.pool_name is None or change.pool_name == self.pool_name)
        )
