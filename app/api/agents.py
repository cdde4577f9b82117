"""Single agents: capacity from the index, everything else from the record."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from app.api.answers import NO_STORE, answer, next_link
from app.api.capacity import source_headers
from app.api.documents import AgentCapacityDocument, AgentDocument, HistoryDocument
from app.api.fields import MAX_HOSTNAME, MAX_POOL_NAME
from app.api.query import agent, choice, read_query, text, whole
from app.api.wiring import wiring_of
from app.errors import AgentNotFoundError
from app.models.agent import DEFAULT_PAGE, MAX_PAGE, AgentFilter
from app.models.capacity import AgentStatus, GpuType
from app.models.identity import AGENT_TYPE_PATTERN, AgentId, parse_agent_id

LIST_PARAMETERS: Final = (
    text("agent_type", "Only this kind of agent.", longest=32, pattern=AGENT_TYPE_PATTERN),
    text("pool_name", "Only agents of this pool.", longest=MAX_POOL_NAME),
    choice("status", "Only agents with this status.", AgentStatus),
    choice("gpu_type", "Only agents with this kind of GPU.", GpuType),
    text("hostname", "Only agents with exactly this host name.", longest=MAX_HOSTNAME),
    whole("limit", "Most agents in one answer.", least=1, most=MAX_PAGE, default=DEFAULT_PAGE),
    agent("after", "Only agents with a greater id: where the page before ended."),
)
HISTORY_PARAMETERS: Final = (
    whole("limit", "Most samples and most events in the answer.", least=1, most=MAX_PAGE, default=DEFAULT_PAGE),
)


def path_agent_id(request: Request) -> AgentId:
    return parse_agent_id(request.path_params["agent_id"])


async def get_agent_capacity(request: Request) -> Response:
    agent_id = path_agent_id(request)
    read_query(request, ())
    located = await wiring_of(request).orchestrator.get(agent_id)
    return answer(AgentCapacityDocument.of(located.agent), headers=source_headers(located.source, located.as_of))


async def list_agents(request: Request) -> Response:
    sent = read_query(request, LIST_PARAMETERS)
    page = await wiring_of(request).record.list_agents(AgentFilter(**sent))
    headers = dict(NO_STORE)
    if page.more and page.agents:
        headers["Link"] = next_link(request, sent, after=page.agents[-1].agent_id)
    return answer([AgentDocument.of(found) for found in page.agents], headers=headers)


async def get_agent(request: Request) -> Response:
    agent_id = path_agent_id(request)
    read_query(request, ())
    found = await wiring_of(request).record.agent(agent_id)
    if found is None:
        raise AgentNotFoundError
    return answer(AgentDocument.of(found))


async def get_agent_history(request: Request) -> Response:
    agent_id = path_agent_id(request)
    sent = read_query(request, HISTORY_PARAMETERS)
    history = await wiring_of(request).record.history(agent_id, limit=sent.get("limit", DEFAULT_PAGE))
    if history is None:
        raise AgentNotFoundError
    return answer(HistoryDocument.of(history))


async def forget_agent(request: Request) -> Response:
    agent_id = path_agent_id(request)
    read_query(request, ())
    await wiring_of(request).agents.forget(agent_id)
    return Response(status_code=204)
