"""Between the rows of agent_registry and the state that a batch is folded into."""

from __future__ import annotations

from typing import Final

from app.models.capacity import AgentStatus, Resources
from app.models.identity import AgentId, StreamId
from app.record import bulk, rows
from app.record.fold import AgentState, Reported
from app.record.tables import agent_registry

STATE: Final = (
    *rows.REGISTERED,
    *rows.ORDERED,
    agent_registry.c.reported_status,
    agent_registry.c.offline_ms,
    agent_registry.c.offline_n,
    agent_registry.c.forgotten_at,
)

Written = tuple[object, ...]
"""Everything in a row that a heartbeat which says nothing new leaves as it is."""


def written_of(state: AgentState) -> Written:
    holder = state.order.holder
    return (
        state.reported,
        state.status,
        # Offline before and after, but by a later heartbeat: the next one would count as nothing new.
        state.offline_at,
        state.registered_ms,
        state.forgotten_ms,
        None if holder is None else holder.boot_id,
        state.order.retired,
    )


def state_of(row: rows.AnyRow) -> AgentState:
    """What cannot be read is taken as absent, so that the next heartbeat writes it anew."""
    try:
        reported: Reported | None = Reported(
            agent_type=row.agent_type,
            pool_name=row.pool_name,
            hostname=row.hostname,
            status=AgentStatus(row.reported_status),
            gpus=rows.gpus_of(row.gpus),
            metrics=rows.metrics_of(row.resource_metrics),
        )
    except rows.UNREADABLE:
        reported = None
    return AgentState(
        agent_id=AgentId(row.agent_id),
        order=rows.order_of(row),
        reported=reported,
        heartbeat_ms=rows.ms_of(row.last_heartbeat_at),
        registered_ms=rows.ms_of(row.registered_at),
        offline_at=StreamId(row.offline_ms, row.offline_n),
        forgotten_ms=None if row.forgotten_at is None else rows.ms_of(row.forgotten_at),
    )


def order_row(state: AgentState) -> bulk.Row:
    """For a heartbeat that said nothing new."""
    holder = state.order.holder
    return {
        "agent_id": state.agent_id,
        "seq": None if holder is None else holder.seq,
        "last_ms": state.order.last_id.ms,
        "last_n": state.order.last_id.n,
        "last_heartbeat_at": rows.moment(state.heartbeat_ms),
    }


def status_row(state: AgentState) -> bulk.Row:
    """For a transition that no heartbeat of the batch came with."""
    holder = state.order.holder
    return {
        "agent_id": state.agent_id,
        "status": state.status.value,
        "boot_id": None if holder is None else holder.boot_id,
        "seq": None if holder is None else holder.seq,
        "retired_boots": rows.boots_document(state.order.retired),
        "last_ms": state.order.last_id.ms,
        "last_n": state.order.last_id.n,
        "offline_ms": state.offline_at.ms,
        "offline_n": state.offline_at.n,
        "forgotten_at": None if state.forgotten_ms is None else rows.moment(state.forgotten_ms),
    }


def whole_row(state: AgentState) -> bulk.Row:
    """For an agent with a heartbeat in the batch.

    Raises:
        ValueError: the state comes from a row that could not be read; such an agent has no heartbeat yet.
    """
    reported = state.reported
    if reported is None:
        raise ValueError("nothing is known of the agent")
    resources = Resources.of(reported.metrics)
    return {
        **status_row(state),
        "agent_type": reported.agent_type,
        "pool_name": reported.pool_name,
        "hostname": reported.hostname,
        "reported_status": reported.status.value,
        "last_heartbeat_at": rows.moment(state.heartbeat_ms),
        "registered_at": rows.moment(state.registered_ms),
        "resource_metrics": rows.metrics_document(reported.metrics),
        "gpus": rows.gpus_document(reported.gpus),
        "has_metrics": reported.metrics is not None,
        "gpu_vram_available_gb": resources.gpu_vram_available_gb,
        "cpu_cores_available": resources.cpu_cores_available,
        "memory_available_gb": resources.memory_available_gb,
        "gpu_type": resources.gpu_type.value,
    }
