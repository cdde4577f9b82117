"""From an agent's newest state to what the index holds of it: fields, document, place, fingerprint."""

from __future__ import annotations

import hashlib
import math
from datetime import UTC, datetime

import msgspec

from app.index.keys import encode_pool
from app.index.scripts import Argument
from app.models.agent import RecordedState
from app.models.capacity import AgentStatus, AvailableCapacity, Resources
from app.models.cordon import Cordon
from app.models.heartbeat import Heartbeat, ResourceMetrics
from app.models.identity import AgentId, StreamId

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
_cordon_decoder = msgspec.json.Decoder(Cordon)
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
    resources = Resources.of(state.metrics)
    boot = "" if heartbeat.boot_id is None else heartbeat.boot_id
    seq = "" if heartbeat.seq is None else str(heartbeat.seq)
    # A goodbye without metrics leaves the last ones.
    says = state.metrics is not None or state.status is not AgentStatus.OFFLINE
    return [
        state.agent_id,
        str(stream_id),
        boot,
        seq,
        *_summary(state, resources, with_metrics=says),
        _fields(state, resources, with_metrics=says),
    ]


def restore_arguments(recorded: RecordedState) -> list[Argument]:
    """One agent's part of the arguments of restore.lua."""
    agent, order, cordon = recorded.agent, recorded.order, recorded.cordon
    state = State(
        agent.agent_id, agent.agent_type, agent.pool_name, agent.hostname, agent.status, agent.resource_metrics
    )
    resources = Resources.of(state.metrics)
    boot, seq = ("", "") if order.holder is None else (order.holder.boot_id, str(order.holder.seq))
    return [
        state.agent_id,
        str(order.last_id),
        boot,
        seq,
        "\n".join(f"{boot.seq} {boot.boot_id}" for boot in order.retired),
        *_summary(state, resources, with_metrics=True),
        b"" if cordon is None else encode_cordon(cordon),
        "" if recorded.cordon_id is None else str(recorded.cordon_id),
        expires_argument(cordon),
        _fields(state, resources, with_metrics=True),
    ]


def encode_cordon(cordon: Cordon) -> bytes:
    return _json.encode(cordon)


def decode_cordon(document: bytes) -> Cordon:
    """Raises msgspec.DecodeError when the document is not one."""
    return _cordon_decoder.decode(document)


def expires_argument(cordon: Cordon | None) -> int | str:
    """When a cordon expires, in ms; empty for never."""
    if cordon is None or cordon.expires_at is None:
        return ""
    return to_ms(cordon.expires_at)


def decode_document(document: bytes) -> Document:
    """Raises msgspec.DecodeError when the document is not one."""
    return _document_decoder.decode(document)


def row_of(agent_id: AgentId, agent_type: str, row: Document, seen_ms: int) -> AvailableCapacity:
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


def mib(gb: float) -> int:
    """Whole MiB, rounded as the scripts do."""
    return math.floor(gb * 1024 + 0.5)


def to_ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def _summary(state: State, resources: Resources, *, with_metrics: bool) -> list[Argument]:
    """Fingerprint, status, place and machine: what the scripts compare and place by."""
    fingerprint = hashlib.blake2b(_msgpack.encode(state), digest_size=_FINGERPRINT_BYTES).hexdigest()
    pool = encode_pool(state.pool_name)
    place, size = "", "- - -"
    if with_metrics:
        size = f"{resources.gpu_type.value} {resources.gpu_vram_total_gb} {resources.cpu_cores_physical}"
    if state.metrics is not None:
        place = f"{resources.gpu_vram_available_gb} {resources.cpu_cores_available} {state.agent_type} {pool}"
    return [fingerprint, state.status.value, place, f"{state.agent_type} {pool} {size}"]


def _fields(state: State, resources: Resources, *, with_metrics: bool) -> bytes:
    """Field, value, field, value… of the agent's hash, as one JSON array.

    One argument, not forty: the server makes an object of each, and most heartbeats change none of these fields.
    """
    fields = [
        *("agent_type", state.agent_type),
        *("pool_name", state.pool_name),
        *("hostname", state.hostname),
        *("status", state.status.value),
    ]
    if with_metrics:
        document = Document(
            state.pool_name,
            resources.gpu_vram_available_gb,
            resources.cpu_cores_available,
            resources.cpu_load_1min,
        )
        for name in RESOURCE_FIELDS:
            fields += (name, str(getattr(resources, name)))
        fields += ("has_metrics", "0" if state.metrics is None else "1")
        fields += ("document", _json.encode(document).decode())
    return _json.encode(fields)
