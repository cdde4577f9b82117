"""What a planner may count on, agent by agent, until there are claims.

An agent's reports show a task only once it runs and uses what it asked for. So what was free when the planner had
nothing there, less everything that it has placed there since and that has not ended, bounds what may still be
placed; the report, which shows what others use, bounds it as well. The smaller of the two counts. Both are of the
one GPU with the most free memory: what a second GPU has left is not counted on while the first one is in use.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from app.models.identity import AgentId
from app.models.plan import Amounts, Task

_MIB: Final = 1024

Whole = tuple[int, int, int]
"""VRAM in MiB, cores, memory in MiB: sums of these are exact."""


def whole(amounts: Amounts) -> Whole:
    return round(amounts.gpu_vram_gb * _MIB), amounts.cpu_cores, round(amounts.memory_gb * _MIB)


def covers(free: Whole, needed: Whole) -> bool:
    return free[0] >= needed[0] and free[1] >= needed[1] and free[2] >= needed[2]


class Ledger:
    """Args: assigned: every task that is placed and has not ended."""

    def __init__(self, assigned: Iterable[Task]) -> None:
        self._free: dict[AgentId, Amounts] = {}
        self._placed: dict[AgentId, Whole] = {}
        for task in assigned:
            if task.agent_id is not None and task.free is not None:
                self.place(task.agent_id, task.needs.amounts, free=task.free)

    def __contains__(self, agent_id: AgentId) -> bool:
        return agent_id in self._placed

    def place(self, agent_id: AgentId, needs: Amounts, *, free: Amounts) -> None:
        """Args: free: what the agent has of all that is placed there; the largest that was ever seen holds."""
        before = self._free.get(agent_id, free)
        self._free[agent_id] = Amounts(
            max(before.gpu_vram_gb, free.gpu_vram_gb),
            max(before.cpu_cores, free.cpu_cores),
            max(before.memory_gb, free.memory_gb),
        )
        vram, cores, memory = self._placed.get(agent_id, (0, 0, 0))
        more_vram, more_cores, more_memory = whole(needs)
        self._placed[agent_id] = vram + more_vram, cores + more_cores, memory + more_memory

    def free(self, agent_id: AgentId, reported: Amounts) -> Amounts:
        """What the agent had free of all that is placed there: what it reports, if that is nothing or more."""
        before = self._free.get(agent_id, reported)
        return Amounts(
            max(before.gpu_vram_gb, reported.gpu_vram_gb),
            max(before.cpu_cores, reported.cpu_cores),
            max(before.memory_gb, reported.memory_gb),
        )

    def usable(self, agent_id: AgentId, reported: Amounts) -> Whole:
        """What may still be placed there."""
        has = whole(reported)
        placed = self._placed.get(agent_id)
        if placed is None:
            return has
        left = [free - used for free, used in zip(whole(self.free(agent_id, reported)), placed, strict=True)]
        return min(has[0], left[0]), min(has[1], left[1]), min(has[2], left[2])
