"""One report of an agent, and its versioned wire form in the stream.

Validation happens once, at the edge (`app.api.schemas`); what is decoded here was valid when it was added.
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import Final

import msgspec

from app.errors import UndecodableEntryError
from app.models.capacity import MAX_CORES, AgentStatus, GpuType
from app.models.identity import (
    DEFAULT_AGENT_TYPE,
    DEFAULT_POOL_NAME,
    MAX_POOL_NAME,
    AgentId,
    is_agent_id,
    is_agent_type,
)

WIRE_VERSION: Final = 1
_MAX_SEQ: Final = 2**63 - 1


class ResourceMetrics(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an agent measured. GB means GiB; None means "not sent"."""

    cpu_percent: float | None = None
    cpu_cores_physical: int | None = None
    cpu_cores_available: int | None = None
    cpu_load_1min: float | None = None
    cpu_load_5min: float | None = None
    memory_percent: float | None = None
    memory_available_gb: float | None = None
    gpu_vram_total_gb: float | None = None
    gpu_vram_available_gb: float | None = None
    gpu_type: GpuType | None = None

    @property
    def empty(self) -> bool:
        return all(value is None for value in msgspec.structs.astuple(self))


class Gpu(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    index: int
    uuid: str = ""
    name: str = ""
    vram_total_gb: float = 0.0
    vram_available_gb: float = 0.0


class RunningClaim(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a claim uses now, as the agent sees it."""

    claim_id: str
    gpu_vram_gb: float = 0.0
    cpu_cores: int = 0
    memory_gb: float = 0.0


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One report: identity, order (`boot_id` and `seq`, both or neither) and metrics.

    `resource_metrics` without any known key and None mean the same: no metrics.
    """

    agent_id: AgentId
    agent_type: str = DEFAULT_AGENT_TYPE
    pool_name: str = DEFAULT_POOL_NAME
    hostname: str = ""
    status: AgentStatus = AgentStatus.ONLINE
    boot_id: str | None = None
    seq: int | None = None
    sent_at: datetime | None = None
    gpus: tuple[Gpu, ...] = ()
    running_claims: tuple[RunningClaim, ...] = ()
    resource_metrics: ResourceMetrics | None = None

    @property
    def metrics(self) -> ResourceMetrics | None:
        """The metrics, or None when there are none (absent, null or without any known key)."""
        if self.resource_metrics is None or self.resource_metrics.empty:
            return None
        return self.resource_metrics


class _Wire(msgspec.Struct, frozen=True):
    v: int
    heartbeat: Heartbeat


class _WireVersion(msgspec.Struct, frozen=True):
    v: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Wire)
_version_decoder = msgspec.msgpack.Decoder(_WireVersion)


def encode(heartbeat: Heartbeat) -> bytes:
    return _encoder.encode(_Wire(WIRE_VERSION, heartbeat))


def decode(payload: bytes) -> Heartbeat:
    """Reads the wire form; fields added by newer writers of the same version are ignored.

    Raises:
        UndecodableEntryError: broken bytes, wrong types, or a wire version this build does not know.
    """
    try:
        version = _version_decoder.decode(payload).v
        if version != WIRE_VERSION:
            raise UndecodableEntryError(f"The log entry has wire version {version}, not {WIRE_VERSION}")
        heartbeat = _decoder.decode(payload).heartbeat
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UndecodableEntryError from error
    _refuse_impossible(heartbeat)
    return heartbeat


def _refuse_impossible(heartbeat: Heartbeat) -> None:
    """Scripts place by these values: one that no edge would take must not reach them from elsewhere."""
    if (
        not is_agent_id(heartbeat.agent_id)
        or not is_agent_type(heartbeat.agent_type)
        or not 1 <= len(heartbeat.pool_name) <= MAX_POOL_NAME
        or (heartbeat.seq is None) != (heartbeat.boot_id is None)
        or (heartbeat.seq is not None and not 0 <= heartbeat.seq <= _MAX_SEQ)
        or (heartbeat.boot_id is not None and not heartbeat.boot_id.isprintable())
        or "\0" in heartbeat.pool_name
        or "\0" in heartbeat.hostname
        or not _possible(heartbeat.resource_metrics)
    ):
        raise UndecodableEntryError("The log entry has a value that no agent can have")


def _possible(metrics: ResourceMetrics | None) -> bool:
    if metrics is None:
        return True
    # Loops, not generators, which take three times as long: every worker does this with every heartbeat.
    for number in msgspec.structs.astuple(metrics)[:-1]:
        if number is not None and not 0 <= number < math.inf:
            return False
    for cores in (metrics.cpu_cores_available, metrics.cpu_cores_physical):
        if cores is not None and cores > MAX_CORES:
            return False
    return True
