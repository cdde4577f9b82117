"""From an agent's newest state to what the index holds of it: fields, document, place, fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from app.index.keys import encode_pool
from app.index.scripts import Argument
from app.models.capacity import AgentStatus, AvailableCapacity, Resources
from app.models.heartbeat import Heartbeat, ResourceMetrics
from app.models.identity import AgentId, StreamId
from app.models.order import Boot, Order

RESOURCE_FIELDS = tuple(Resources.__struct_fields__)

_FINGERPRINT_BYTES = 9


class Document(msgspec.Struct, frozen=True, array_like=True):
    """What a search row needs beyond id, type and `seen`. A placeable agent is online.

    Kept below 64 bytes for ordinary pool names: one longer value would turn the whole hash from a listpack of
    some 600 bytes into a table of 1,500 (docs/decisions, "A compact document").
    """

    pool_name: str
    gpu_vram_available_gb: float
    cpu_cores_available: int
    cpu_load_1min: float


class State(msgspec.Struct, frozen=True):
    """What a heartbeat, or the record, says about an agent, without its order."""

    agent_id: AgentId
    agent_type: str
    pool_name: str
    hostname: str
    status: AgentStatus
    metrics: ResourceMetrics | None


_json = msgspec.json.Encoder()
_msgpack = msgspec.msgpack.Encoder()
_document_decoder = msgspec.json.Decoder(Document)


def state_of(heartbeat: Heartbeat) -> State:
    return State(
        heartbeat.agent_id,
        heartbeat.agent_type,
        heartbeat.pool_name,
        heartbeat.hostname,
        heartbeat.status,
        heartbeat.metrics,
    )


def apply_arguments(stream_id: StreamId, heartbeat: Heartbeat) -> list[Argument]:
    """One heartbeat's part of the arguments of apply.lua."""
    state = state_of(heartbeat)
    boot = "" if heartbeat.boot_id is None else heartbeat.boot_id
    seq = "" if heartbeat.seq is None else str(heartbeat.seq)
    return [state.agent_id, str(stream_id), boot, seq, *_state_arguments(state, keeps_metrics=True)]


def restore_arguments(state: State, order: Order) -> list[Argument]:
    """One agent's part of the arguments of restore.lua."""
    boot, seq = ("", "") if order.holder is None else (order.holder.boot_id, str(order.holder.seq))
    return [
        state.agent_id,
        str(order.last_id),
        boot,
        seq,
        _retired_lines(order.retired),
        *_state_arguments(state, keeps_metrics=False),
    ]


def read_row(agent_id: AgentId, agent_type: str, document: bytes, seen_ms: int) -> AvailableCapacity:
    """Raises msgspec.DecodeError when the document is not one."""
    row = _document_decoder.decode(document)
    return AvailableCapacity(
        agent_id=agent_id,
        agent_type=agent_type,
        pool_name=row.pool_name,
        status=AgentStatus.ONLINE,
        gpu_vram_available_gb=row.gpu_vram_available_gb,
        cpu_cores_available=row.cpu_cores_available,
        cpu_load_1min=row.cpu_load_1min,
        last_heartbeat_at=from_ms(seen_ms),
    )


def from_ms(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def _state_arguments(state: State, *, keeps_metrics: bool) -> list[Argument]:
    """Fingerprint, status, wanted place, and the fields. A goodbye without metrics leaves the last ones."""
    fingerprint = hashlib.blake2b(_msgpack.encode(state), digest_size=_FINGERPRINT_BYTES).hexdigest()
    fields: list[Argument] = [
        "agent_type",
        state.agent_type,
        "pool_name",
        state.pool_name,
        "hostname",
        state.hostname,
        "status",
        state.status.value,
    ]
    wanted = ""
    if state.metrics is not None or state.status is not AgentStatus.OFFLINE or not keeps_metrics:
        resources = Resources.of(state.metrics)
        for name in RESOURCE_FIELDS:
            fields += (name, str(getattr(resources, name)))
        fields += (
            "has_metrics",
            0 if state.metrics is None else 1,
            "document",
            _document(state, resources),
        )
        if state.status is AgentStatus.ONLINE and state.metrics is not None:
            wanted = (
                f"{resources.gpu_vram_available_gb} {resources.cpu_cores_available} "
                f"{state.agent_type} {encode_pool(state.pool_name)}"
            )
    return [fingerprint, state.status.value, wanted, len(fields), *fields]


def _document(state: State, resources: Resources) -> bytes:
    return _json.encode(
        Document(
            state.pool_name,
            resources.gpu_vram_available_gb,
            resources.cpu_cores_available,
            resources.cpu_load_1min,
        )
    )


def _retired_lines(retired: Sequence[Boot]) -> str:
    return "\n".join(f"{boot.seq} {boot.boot_id}" for boot in retired)
