"""All URLs in one table. The order matters: fixed paths before those with an id, the hottest first."""

from __future__ import annotations

from typing import Final

from app.api import agents, capacity, health, heartbeats
from app.api.documents import (
    AgentCapacityDocument,
    AgentDocument,
    AliveDocument,
    AvailableCapacityDocument,
    HeartbeatAcceptedDocument,
    HeartbeatsAcceptedDocument,
    HistoryDocument,
    ReadinessDocument,
)
from app.api.operations import Operation
from app.api.schemas import HeartbeatIn, HeartbeatsIn

_LOOKUP_FAULTS: Final = ("capacity_unknown", "index_unavailable", "index_rebuilding")
_LOG_FAULTS: Final = ("index_unavailable", "backlog_full")
_LOOKUP_HEADERS: Final = ("X-Capacity-Source", "X-Capacity-As-Of")

OPERATIONS: Final = (
    Operation(
        method="GET",
        path="/api/v1/agents/available-capacity",
        handler=capacity.find_available_capacity,
        operation_id="findAvailableCapacity",
        tag="agents",
        summary="Agents with at least this much free, most free GPU memory first",
        answers={200: list[AvailableCapacityDocument]},
        parameters=capacity.FIND_PARAMETERS,
        faults=(*_LOOKUP_FAULTS, "invalid_cursor"),
        headers=(*_LOOKUP_HEADERS, "X-Total-Count", "Link"),
        failed="Failed to fetch available capacity",
    ),
    Operation(
        method="GET",
        path="/api/v1/agents/{agent_id}/capacity",
        handler=agents.get_agent_capacity,
        operation_id="getAgentCapacity",
        tag="agents",
        summary="What one agent has free",
        answers={200: AgentCapacityDocument},
        faults=(*_LOOKUP_FAULTS, "agent_not_found"),
        headers=_LOOKUP_HEADERS,
        failed="Failed to fetch agent capacity",
    ),
    Operation(
        method="POST",
        path="/api/v1/agents/{agent_id}/heartbeat",
        handler=heartbeats.post_heartbeat,
        operation_id="postHeartbeat",
        tag="heartbeats",
        summary="Report of one agent",
        answers={202: HeartbeatAcceptedDocument},
        body=HeartbeatIn,
        faults=_LOG_FAULTS,
    ),
    Operation(
        method="POST",
        path="/api/v1/heartbeats",
        handler=heartbeats.post_heartbeats,
        operation_id="postHeartbeats",
        tag="heartbeats",
        summary="Up to 1,000 reports; valid ones are taken even if others are not",
        answers={202: HeartbeatsAcceptedDocument},
        body=HeartbeatsIn,
        faults=_LOG_FAULTS,
    ),
    Operation(
        method="GET",
        path="/api/v1/agents",
        handler=agents.list_agents,
        operation_id="listAgents",
        tag="agents",
        summary="All agents of the record by ascending id, offline ones included",
        answers={200: list[AgentDocument]},
        parameters=agents.LIST_PARAMETERS,
        faults=("record_unavailable",),
        headers=("Link",),
    ),
    Operation(
        method="GET",
        path="/api/v1/agents/{agent_id}",
        handler=agents.get_agent,
        operation_id="getAgent",
        tag="agents",
        summary="Details of one agent",
        answers={200: AgentDocument},
        faults=("agent_not_found", "record_unavailable"),
    ),
    Operation(
        method="DELETE",
        path="/api/v1/agents/{agent_id}",
        handler=agents.forget_agent,
        operation_id="forgetAgent",
        tag="agents",
        summary="Forget an agent and its history; its next heartbeat registers it anew",
        answers={204: None},
        faults=("agent_not_found", "index_unavailable", "index_rebuilding", "record_unavailable"),
    ),
    Operation(
        method="GET",
        path="/api/v1/agents/{agent_id}/history",
        handler=agents.get_agent_history,
        operation_id="getAgentHistory",
        tag="agents",
        summary="Thinned samples and changes of status of one agent, newest first",
        answers={200: HistoryDocument},
        parameters=agents.HISTORY_PARAMETERS,
        faults=("agent_not_found", "record_unavailable"),
    ),
    Operation(
        method="GET",
        path="/livez",
        handler=health.livez,
        operation_id="livez",
        tag="operations",
        summary="The process answers",
        answers={200: AliveDocument},
    ),
    Operation(
        method="GET",
        path="/readyz",
        handler=health.readyz,
        operation_id="readyz",
        tag="operations",
        summary="Index or record can answer lookups",
        answers={200: ReadinessDocument, 503: ReadinessDocument},
    ),
    Operation(
        method="GET",
        path="/metrics",
        handler=health.metrics,
        operation_id="metrics",
        tag="operations",
        summary="Metrics for Prometheus",
        answers={200: str},
    ),
)
