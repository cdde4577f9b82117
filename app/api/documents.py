"""Answers as they go out over HTTP, in the order of their fields; OpenAPI is generated from these types.

Moments are text so that they are written `+00:00`; GB means GiB.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from app.api.problems import FieldError
from app.models.agent import AgentHistory, Event, RegisteredAgent, Sample
from app.models.capacity import AgentCapacity, AgentStatus, AvailableCapacity, GpuType, Resources
from app.models.cordon import Cordon
from app.models.heartbeat import Gpu, ResourceMetrics
from app.models.transition import Reason, TransitionKind


def iso(moment: datetime) -> str:
    return moment.isoformat()


class AgentCapacityDocument(msgspec.Struct, frozen=True):
    agent_id: str
    status: AgentStatus
    cpu_cores_available: int
    cpu_cores_physical: int
    cpu_load_1min: float
    cpu_load_5min: float
    cpu_percent: float
    memory_available_gb: float
    memory_percent: float
    gpu_vram_available_gb: float
    gpu_vram_total_gb: float
    gpu_type: GpuType
    timestamp: str

    @classmethod
    def of(cls, agent: AgentCapacity) -> AgentCapacityDocument:
        return cls(
            agent.agent_id,
            agent.status,
            agent.cpu_cores_available,
            agent.cpu_cores_physical,
            agent.cpu_load_1min,
            agent.cpu_load_5min,
            agent.cpu_percent,
            agent.memory_available_gb,
            agent.memory_percent,
            agent.gpu_vram_available_gb,
            agent.gpu_vram_total_gb,
            agent.gpu_type,
            iso(agent.timestamp),
        )


class AvailableCapacityDocument(msgspec.Struct, frozen=True):
    agent_id: str
    agent_type: str
    pool_name: str
    status: AgentStatus
    gpu_vram_available_gb: float
    cpu_cores_available: int
    cpu_load_1min: float
    last_heartbeat_at: str

    @classmethod
    def of(cls, agent: AvailableCapacity) -> AvailableCapacityDocument:
        return cls(
            agent.agent_id,
            agent.agent_type,
            agent.pool_name,
            agent.status,
            agent.gpu_vram_available_gb,
            agent.cpu_cores_available,
            agent.cpu_load_1min,
            iso(agent.last_heartbeat_at),
        )


class CordonDocument(msgspec.Struct, frozen=True):
    """`expires_at` is null for a cordon that only an operator ends."""

    reason: str
    actor: str
    since: str
    expires_at: str | None

    @classmethod
    def of(cls, cordon: Cordon) -> CordonDocument:
        expires_at = None if cordon.expires_at is None else iso(cordon.expires_at)
        return cls(cordon.reason, cordon.actor, iso(cordon.since), expires_at)


def _cordon(cordon: Cordon | None) -> CordonDocument | None:
    return None if cordon is None else CordonDocument.of(cordon)


class ChangedAgentDocument(msgspec.Struct, frozen=True):
    """`recorded` is false while the record is away: the cordon is in force, and the recorder brings it later."""

    agent_id: str
    cordon: CordonDocument | None
    recorded: bool


class ChangedAgentsDocument(msgspec.Struct, frozen=True):
    """`agents`: how many the filter named; `changed`: how many of them are otherwise now."""

    agents: int
    changed: int
    cordon: CordonDocument | None
    recorded: bool


class AgentDocument(msgspec.Struct, frozen=True, kw_only=True):
    """An agent of the record; `resource_metrics` as it sent them."""

    agent_id: str
    agent_type: str
    pool_name: str
    hostname: str
    status: AgentStatus
    last_heartbeat_at: str
    registered_at: str
    boot_id: str | None
    seq: int | None
    gpus: tuple[Gpu, ...]
    resource_metrics: ResourceMetrics | None
    cordon: CordonDocument | None

    @classmethod
    def of(cls, agent: RegisteredAgent) -> AgentDocument:
        return cls(
            agent_id=agent.agent_id,
            agent_type=agent.agent_type,
            pool_name=agent.pool_name,
            hostname=agent.hostname,
            status=agent.status,
            last_heartbeat_at=iso(agent.last_heartbeat_at),
            registered_at=iso(agent.registered_at),
            boot_id=agent.boot_id,
            seq=agent.seq,
            gpus=agent.gpus,
            resource_metrics=agent.resource_metrics,
            cordon=_cordon(agent.cordon),
        )


class SampleDocument(msgspec.Struct, frozen=True):
    """The newest heartbeat of a time slot."""

    at: str
    status: AgentStatus
    resources: Resources

    @classmethod
    def of(cls, sample: Sample) -> SampleDocument:
        return cls(iso(sample.at), sample.status, sample.resources)


class EventDocument(msgspec.Struct, frozen=True):
    """A change of status; `from_status` is null at registration and for cordons.

    `changes` above 1: so many changes of a flapping agent, the last of them at `last_at`. `cordon` comes with
    `cordoned` alone.
    """

    at: str
    from_status: TransitionKind | None
    to_status: TransitionKind
    reason: Reason
    changes: int
    last_at: str
    cordon: CordonDocument | None

    @classmethod
    def of(cls, event: Event) -> EventDocument:
        return cls(
            iso(event.at),
            event.from_status,
            event.to_status,
            event.reason,
            event.changes,
            iso(event.at if event.last_at is None else event.last_at),
            _cordon(event.cordon),
        )


class HistoryDocument(msgspec.Struct, frozen=True):
    """Both lists newest first."""

    agent_id: str
    samples: list[SampleDocument]
    events: list[EventDocument]

    @classmethod
    def of(cls, history: AgentHistory) -> HistoryDocument:
        return cls(
            history.agent_id,
            [SampleDocument.of(sample) for sample in history.samples],
            [EventDocument.of(event) for event in history.events],
        )


class HeartbeatAcceptedDocument(msgspec.Struct, frozen=True, omit_defaults=True):
    """The log has the heartbeat; the agent is asked to report again after `next_heartbeat_s` seconds.

    `cloned` is there, and true, when two machines were lately seen under this id.
    """

    stream_id: str
    next_heartbeat_s: float
    cloned: bool = False


class AcceptedItemDocument(msgspec.Struct, frozen=True):
    index: int
    stream_id: str


class RejectedItemDocument(msgspec.Struct, frozen=True):
    index: int
    code: str
    errors: list[FieldError]


class HeartbeatsAcceptedDocument(msgspec.Struct, frozen=True, omit_defaults=True):
    """`cloned` is there when some of these ids were lately seen on two machines."""

    accepted: list[AcceptedItemDocument]
    rejected: list[RejectedItemDocument]
    next_heartbeat_s: float
    cloned: list[str] = []


class AliveDocument(msgspec.Struct, frozen=True):
    status: Literal["alive"] = "alive"


class PartDocument(msgspec.Struct, frozen=True, omit_defaults=True):
    """One store; `code` says what is wrong with it."""

    status: Literal["up", "away"]
    code: str = ""


class ReadinessDocument(msgspec.Struct, frozen=True):
    status: Literal["ready", "not_ready"]
    parts: dict[str, PartDocument]
