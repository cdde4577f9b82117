"""Where the tasks that wait are to go: one pass over all of them, oldest first."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import msgspec

from app.errors import AgentNotFoundError, UnavailableError
from app.models.capacity import AgentStatus, AvailableCapacity, CapacityPage, CapacityQuery, Cursor
from app.models.identity import AgentId
from app.models.plan import Amounts, Needs, Task, TaskId, TaskStatus
from app.service.ledger import Ledger, Whole, covers, whole
from app.service.orchestrator import OrchestratorService
from app.service.ports import FleetInsight

log = logging.getLogger(__name__)

_PAGE: Final = 50
_PLENTY_GB: Final = 2.0**20
_MOST_FUTILE: Final = 64
_BREATH: Final = 200
"""Tasks after which others in this process get their turn."""


Scope = tuple[str, str | None, str | None]
"""Type, pool and GPU type: tasks of one scope are in each other's way."""


class _Place(msgspec.Struct, frozen=True):
    """An agent that fits; `usable` is before the task is there."""

    agent_id: AgentId
    reported: Amounts
    usable: Whole


class Placing:
    """One round over all that is pending, in passes of bounded work.

    The first task of a scope that fits nowhere keeps an agent for itself: the one big enough that lacks least of
    what it needs. Later tasks may go before it, but not there, so it is free at the latest when all that runs
    there has ended, however many small tasks come in.

    Attributes:
        unfinished: whether the last pass left tasks that this round has not looked at.
    """

    def __init__(self, orchestrator: OrchestratorService, insight: FleetInsight) -> None:
        self.unfinished = False
        self._orchestrator = orchestrator
        self._insight = insight
        self._ledger = Ledger(())
        self._calls = 0
        self._seen: set[TaskId] = set()
        self._kept: dict[AgentId, Scope] = {}
        self._futile: dict[Scope, list[Whole]] = {}

    async def place(
        self, pending: Sequence[Task], ledger: Ledger, now: datetime, *, most_calls: int
    ) -> list[Task]:
        """One pass, which goes on where the one before ended: the tasks that can be assigned, as they are then.

        Args:
            pending: all that is pending, in order.
            ledger: what is placed already; this adds to it.
            now: when they are assigned.
            most_calls: questions asked of the index before a pass ends.

        Raises:
            UnavailableError: nobody can tell what is free.
        """
        placed: list[Task] = []
        self._ledger, self._calls, self.unfinished = ledger, 0, False
        for number, task in enumerate(pending):
            if number % _BREATH == 0:
                await asyncio.sleep(0)
            if task.task_id in self._seen:
                continue
            if self._calls >= most_calls:
                self.unfinished = True
                break
            self._seen.add(task.task_id)
            assigned = await self._place(task, now)
            if assigned is not None:
                placed.append(assigned)
        return placed

    async def _place(self, task: Task, now: datetime) -> Task | None:
        needs = task.needs
        scope: Scope = (needs.agent_type, needs.pool_name, None if needs.gpu_type is None else needs.gpu_type)
        needed = whole(needs.amounts)
        futile = self._futile.setdefault(scope, [])
        # What did not fit before has not come to fit since: in a pass there is only ever less, and what comes
        # free between two passes of a round is looked at in the next round.
        if any(covers(needed, less) for less in futile):
            return None
        place = await self._find(needs)
        if place is None:
            if not futile:
                await self._keep_for(needs, scope)
            if len(futile) < _MOST_FUTILE:
                futile.append(needed)
            return None
        free = self._ledger.free(place.agent_id, place.reported)
        self._ledger.place(place.agent_id, needs.amounts, free=free)
        return msgspec.structs.replace(
            task, status=TaskStatus.ASSIGNED, agent_id=place.agent_id, free=free, assigned_at=now
        )

    async def _find(self, needs: Needs) -> _Place | None:
        """The agent with the most usable VRAM that fits and is not kept for somebody else."""
        best: _Place | None = None
        needed = whole(needs.amounts)
        after: Cursor | None = None
        while True:
            page = await self._search(query_for(needs, after=after))
            for row in page.agents:
                # What is usable is never more than what is reported, and that only gets less from here on.
                if best is not None and round(row.gpu_vram_available_gb * 1024) <= best.usable[0]:
                    return best
                bound = self._bound(row)
                if row.agent_id in self._kept or not covers(bound, needed):
                    continue
                if best is not None and bound[0] <= best.usable[0]:
                    continue
                place = await self._look_at(row)
                if place and covers(place.usable, needed) and (best is None or place.usable[0] > best.usable[0]):
                    best = place
            after = page.cursor
            if after is None:
                return best

    def _bound(self, row: AvailableCapacity) -> Whole:
        """What is usable there at most, by what the search tells."""
        reported = Amounts(row.gpu_vram_available_gb, row.cpu_cores_available, _PLENTY_GB)
        return self._ledger.usable(row.agent_id, reported)

    async def _look_at(self, row: AvailableCapacity) -> _Place | None:
        """The search does not tell its main memory: the agent itself is asked."""
        self._calls += 1
        reported = await self._reported(row.agent_id)
        if reported is None:
            return None
        return _Place(row.agent_id, reported, self._ledger.usable(row.agent_id, reported))

    async def _reported(self, agent_id: AgentId) -> Amounts | None:
        try:
            agent = (await self._orchestrator.get(agent_id)).agent
        except AgentNotFoundError:
            return None
        if agent.status is not AgentStatus.ONLINE:
            return None
        return Amounts(agent.gpu_vram_available_gb, agent.cpu_cores_available, agent.memory_available_gb)

    async def _keep_for(self, needs: Needs, scope: Scope) -> None:
        """Of the agents that are big enough, the one that lacks least: what is kept only gets more."""
        page = await self._search(query_for(needs))
        rooms = {row.agent_id: self._bound(row) for row in page.agents}
        self._calls += 1
        try:
            for one in await self._insight.big_enough(query_for(needs)):
                reported = Amounts(one.gpu_vram_available_gb, one.cpu_cores_available, _PLENTY_GB)
                rooms.setdefault(one.agent_id, self._ledger.usable(one.agent_id, reported))
        except UnavailableError:
            log.debug("Nobody can name the agents that are big enough: only those that report enough are kept")
        needed = whole(needs.amounts)
        told = {row.agent_id for row in page.agents}
        for agent_id in sorted(rooms, key=lambda one: (_lack(rooms[one], needed), one)):
            if agent_id in self._kept:
                continue
            # The search knows its main memory; of the others the agent itself is asked.
            if agent_id in told or await self._has_memory(agent_id, needs.amounts.memory_gb):
                self._kept[agent_id] = scope
                return

    async def _has_memory(self, agent_id: AgentId, memory_gb: float) -> bool:
        if not memory_gb:
            return True
        self._calls += 1
        try:
            agent = (await self._orchestrator.get(agent_id)).agent
        except AgentNotFoundError:
            return False
        used = min(agent.memory_percent, 99.0) / 100
        return agent.memory_available_gb / (1 - used) >= memory_gb

    async def _search(self, query: CapacityQuery) -> CapacityPage:
        self._calls += 1
        return await self._orchestrator.find(query)


def _lack(usable: Whole, needed: Whole) -> float:
    """How much of what is needed is not there, as a share, added up over what is of several kinds."""
    return sum(max(0, wants - has) / wants for has, wants in zip(usable, needed, strict=True) if wants)


def query_for(needs: Needs, *, after: Cursor | None = None) -> CapacityQuery:
    """The search for agents that report enough."""
    return CapacityQuery(
        min_gpu_vram_gb=needs.amounts.gpu_vram_gb,
        min_cpu_cores=max(1, needs.amounts.cpu_cores),
        min_memory_gb=needs.amounts.memory_gb,
        agent_type=needs.agent_type,
        pool_name=needs.pool_name,
        gpu_type=needs.gpu_type,
        limit=_PAGE,
        after=after,
    )
