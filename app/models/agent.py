"""What the record keeps of an agent: registration, details, transitions, thinned history."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec

from app.models.capacity import AgentStatus, GpuType, Resources
from app.models.cordon import Cordon
from app.models.heartbeat import Gpu, Heartbeat, ResourceMetrics
from app.models.identity import AgentId, StreamId
from app.models.order import Boot, Order
from app.models.transition import Reason, TransitionKind

DEFAULT_PAGE: Final = 100
MAX_PAGE: Final = 1_000


class RegisteredAgent(msgspec.Struct, frozen=True, kw_only=True):
    """One agent of the registry; `resource_metrics` as the agent sent them, None when it sent none.

    `cordon` may be past its expiry for as long as nobody has lifted it.
    """

    agent_id: AgentId
    agent_type: str
    pool_name: str
    hostname: str
    status: AgentStatus
    last_heartbeat_at: datetime
    registered_at: datetime
    boot_id: str | None
    seq: int | None
    gpus: tuple[Gpu, ...]
    resource_metrics: ResourceMetrics | None
    cordon: Cordon | None = None


class AgentFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which agents a listing wants; `after` is the last id of the page before."""

    agent_type: str | None = None
    pool_name: str | None = None
    status: AgentStatus | None = None
    gpu_type: GpuType | None = None
    hostname: str | None = None
    limit: int = DEFAULT_PAGE
    after: AgentId | None = None


class AgentPage(msgspec.Struct, frozen=True, kw_only=True):
    agents: list[RegisteredAgent]
    more: bool = False


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One kept point of an agent's history: the newest heartbeat of its time slot."""

    at: datetime
    status: AgentStatus
    resources: Resources


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A transition as the record keeps it; `from_status` None at registration and for cordons.

    Attributes:
        cordon: with `cordoned` alone.
        changes: how many changes of a flapping agent this stands for; `to_status` is what the last led to.
        last_at: when the last of them happened.
    """

    at: datetime
    from_status: TransitionKind | None
    to_status: TransitionKind
    reason: Reason
    cordon: Cordon | None = None
    changes: int = 1
    last_at: datetime | None = None


class AgentHistory(msgspec.Struct, frozen=True, kw_only=True):
    """Both newest first."""

    agent_id: AgentId
    samples: list[Sample]
    events: list[Event]


class RecordedState(msgspec.Struct, frozen=True, kw_only=True):
    """What a rebuild needs of an agent to make its index entry again, order included.

    `cordon_id` is the log entry that last set or lifted a cordon, None when none ever did.
    """

    agent: RegisteredAgent
    order: Order
    cordon: Cordon | None = None
    cordon_id: StreamId | None = None


class IndexedState(msgspec.Struct, frozen=True, kw_only=True):
    """What brings the record up to what the index knows of an agent where log entries in between are lost.

    Attributes:
        heartbeat: the newest one, as far as the index keeps it: without the single GPUs.
        silent: declared offline after a silence; its own status is then not known.
        retired: earlier boots, newest first.
    """

    heartbeat: Heartbeat
    silent: bool
    retired: tuple[Boot, ...]

    @property
    def agent_id(self) -> AgentId:
        return self.heartbeat.agent_id
