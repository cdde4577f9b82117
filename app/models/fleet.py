"""The whole fleet at a glance: every agent with as much as a map of it needs."""

from __future__ import annotations

from typing import Final

import msgspec

from app.models.capacity import AgentStatus, GpuType, Source
from app.models.identity import AgentId, StreamId

DEFAULT_FLEET_PAGE: Final = 1_000
MAX_FLEET_PAGE: Final = 2_000


class FleetAgent(msgspec.Struct, frozen=True, kw_only=True):
    """One agent, offline ones included. An offline agent keeps its last figures.

    Attributes:
        placeable: whether searches find it.
        seen_ms: receive time of its last heartbeat.
    """

    agent_id: AgentId
    hostname: str
    agent_type: str
    pool_name: str
    gpu_type: GpuType
    status: AgentStatus
    placeable: bool
    cordoned: bool
    gpu_vram_available_gb: float
    gpu_vram_total_gb: float
    cpu_cores_available: int
    cpu_cores_physical: int
    seen_ms: int


class FleetPage(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the fleet, in no order.

    Attributes:
        version: of the change feed, read before the agents: who applies all changes after the version of the
            first page to all pages has the fleet as it is. 0-0 from the record, which has no feed.
        cursor: continues; None at the end. An agent whose status changes between two pages may come twice or,
            with its change in the feed, not at all.
    """

    agents: list[FleetAgent]
    version: StreamId
    cursor: str | None = None
    source: Source = "index"
