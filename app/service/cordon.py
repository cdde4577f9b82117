"""Cordons: an operator keeps agents free of new work, one by one or all that a filter names."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

import msgspec

from app.errors import AgentArchivedError, AgentNotFoundError, RecordUnavailableError
from app.models.agent import MAX_PAGE, AgentFilter
from app.models.cordon import Cordon
from app.models.fleet import MAX_FLEET_PAGE, FleetAgent
from app.models.identity import AgentId, StreamId
from app.service.ports import AgentRecord, CapacityIndex, CordonIndex, CordonRecord, FleetIndex

log = logging.getLogger(__name__)

_AT_ONCE: Final = 16
"""Agents of a filter that are cordoned side by side; Redis serves others in between."""


class Cordoned(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an operator's word.

    Attributes:
        agents: those that it concerned.
        changed: those of them that are otherwise now; the rest was not cordoned, or is archived.
        recorded: whether the record has it already; if not, the recorder brings it.
    """

    agents: int
    changed: int
    recorded: bool


class CordonService:
    """Sets and lifts cordons: in force in the index when a call returns, and in the record at once if it is there.

    Args:
        index: where cordons are enforced.
        capacity: tells agents that are not cordoned from unknown ones.
        agents: the registry, which names the agents of a filter.
        fleet: names those that the registry does not know yet.
        record: keeps cordons through the loss of the index.
    """

    def __init__(
        self,
        index: CordonIndex,
        capacity: CapacityIndex,
        agents: AgentRecord,
        fleet: FleetIndex,
        record: CordonRecord,
    ) -> None:
        self._index = index
        self._capacity = capacity
        self._agents = agents
        self._fleet = fleet
        self._record = record

    async def change(self, agent_id: AgentId, cordon: Cordon | None) -> Cordoned:
        """Cordons an agent, or lifts its cordon. Repeating it is harmless.

        Raises:
            AgentNotFoundError: nobody knows it.
            AgentArchivedError: it has been offline for so long that only the record knows it.
            IndexUnavailableError: nothing was changed.
        """
        position = await self._change(agent_id, cordon)
        if position is None:
            await self._require_indexed(agent_id)
            return Cordoned(agents=1, changed=0, recorded=True)
        recorded = await self._keep({agent_id: position}, cordon)
        log.info("%s agent %s", "Uncordoned" if cordon is None else "Cordoned", agent_id)
        return Cordoned(agents=1, changed=1, recorded=recorded)

    async def change_all(self, wanted: AgentFilter, cordon: Cordon | None) -> Cordoned:
        """The same for every agent that the filter names now; those that join later are not concerned.

        Raises:
            RecordUnavailableError: nobody can say which agents these are; nothing was changed.
            IndexUnavailableError: some may have been changed already. Repeating it is harmless.
        """
        known: set[AgentId] = set()
        changed, recorded = 0, True
        async for named in self._named(wanted):
            ids = [agent_id for agent_id in named if agent_id not in known]
            positions = await self._change_each(ids, cordon)
            recorded = await self._keep(positions, cordon) and recorded
            known.update(ids)
            changed += len(positions)
        agents = len(known)
        log.info("%s %d of %d agents", "Uncordoned" if cordon is None else "Cordoned", changed, agents)
        return Cordoned(agents=agents, changed=changed, recorded=recorded)

    async def _named(self, wanted: AgentFilter) -> AsyncIterator[list[AgentId]]:
        """From the record, and from the index those that the recorder has yet to bring; some of them twice."""
        page_of = msgspec.structs.replace(wanted, limit=MAX_PAGE, after=None)
        more = True
        while more:
            page = await self._agents.list_agents(page_of)
            ids = [agent.agent_id for agent in page.agents]
            yield ids
            more = page.more and bool(ids)
            if more:
                page_of = msgspec.structs.replace(page_of, after=ids[-1])
        cursor: str | None = None
        while True:
            fleet = await self._fleet.page(limit=MAX_FLEET_PAGE, cursor=cursor)
            yield [agent.agent_id for agent in fleet.agents if _is_named(agent, wanted)]
            cursor = fleet.cursor
            if cursor is None:
                return

    async def _change(self, agent_id: AgentId, cordon: Cordon | None) -> StreamId | None:
        if cordon is None:
            return await self._index.uncordon(agent_id)
        return await self._index.cordon(agent_id, cordon)

    async def _change_each(self, agent_ids: Sequence[AgentId], cordon: Cordon | None) -> dict[AgentId, StreamId]:
        positions: dict[AgentId, StreamId] = {}
        try:
            for first in range(0, len(agent_ids), _AT_ONCE):
                some = agent_ids[first : first + _AT_ONCE]
                changed = await asyncio.gather(*(self._change(agent_id, cordon) for agent_id in some))
                positions |= {one: at for one, at in zip(some, changed, strict=True) if at is not None}
        except BaseException:
            await self._keep(positions, cordon)
            raise
        return positions

    async def _require_indexed(self, agent_id: AgentId) -> None:
        # Raises while the index is being rebuilt, when its word that it knows nobody is worth nothing.
        if await self._capacity.get(agent_id) is not None:
            return
        if await self._agents.agent(agent_id) is None:
            raise AgentNotFoundError
        raise AgentArchivedError

    async def _keep(self, positions: Mapping[AgentId, StreamId], cordon: Cordon | None) -> bool:
        if not positions:
            return True
        try:
            await self._record.set_cordons(positions, cordon)
        except RecordUnavailableError:
            log.warning("The record is away: the recorder brings %d cordons later", len(positions))
            return False
        return True


def _is_named(agent: FleetAgent, wanted: AgentFilter) -> bool:
    filters = ("agent_type", "pool_name", "status", "gpu_type", "hostname")
    return all(getattr(wanted, name) in {None, getattr(agent, name)} for name in filters)
