"""The fleet at a glance: from the index, and from the record while the index is away."""

from __future__ import annotations

from typing import Final

from app.errors import IndexUnavailableError, InvalidAgentIdError, InvalidCursorError
from app.models.agent import MAX_PAGE, AgentFilter, RegisteredAgent
from app.models.capacity import AgentStatus, Resources
from app.models.fleet import FleetAgent, FleetPage
from app.models.identity import AgentId, StreamId, parse_agent_id
from app.service.ports import AgentRecord, FleetIndex

_RECORD: Final = "record."


class FleetService:
    """Pages through all agents. A page's cursor goes on where the page came from."""

    def __init__(self, index: FleetIndex, record: AgentRecord) -> None:
        self._index = index
        self._record = record

    async def page(self, *, limit: int, cursor: str | None = None) -> FleetPage:
        """About `limit` agents, more where the index finds more at once.

        Raises:
            InvalidCursorError: no page before said so.
            UnavailableError: neither store answers, or not the one that the cursor belongs to.
        """
        if cursor is not None and cursor.startswith(_RECORD):
            return await self._recorded(limit, _read_id(cursor.removeprefix(_RECORD)))
        try:
            return await self._index.page(limit=limit, cursor=cursor)
        except IndexUnavailableError:
            if cursor is not None:
                raise
        return await self._recorded(limit, None)

    async def _recorded(self, limit: int, after: AgentId | None) -> FleetPage:
        page = await self._record.list_agents(AgentFilter(limit=min(limit, MAX_PAGE), after=after))
        more = page.more and bool(page.agents)
        return FleetPage(
            agents=[_fleet_agent(agent) for agent in page.agents],
            version=StreamId(0),
            cursor=f"{_RECORD}{page.agents[-1].agent_id}" if more else None,
            source="record",
        )


def _read_id(text: str) -> AgentId:
    try:
        return parse_agent_id(text)
    except InvalidAgentIdError:
        raise InvalidCursorError from None


def _fleet_agent(agent: RegisteredAgent) -> FleetAgent:
    resources = Resources.of(agent.resource_metrics)
    cordoned = agent.cordon is not None
    online = agent.status is AgentStatus.ONLINE
    return FleetAgent(
        agent_id=agent.agent_id,
        hostname=agent.hostname,
        agent_type=agent.agent_type,
        pool_name=agent.pool_name,
        gpu_type=resources.gpu_type,
        status=agent.status,
        placeable=online and not cordoned and agent.resource_metrics is not None,
        cordoned=cordoned,
        gpu_vram_available_gb=resources.gpu_vram_available_gb,
        gpu_vram_total_gb=resources.gpu_vram_total_gb,
        cpu_cores_available=resources.cpu_cores_available,
        cpu_cores_physical=resources.cpu_cores_physical,
        seen_ms=round(agent.last_heartbeat_at.timestamp() * 1000),
    )
