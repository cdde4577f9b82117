"""How many tasks of one size fit in all, from few counts of agents."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


class TaskSums:
    """An agent takes k tasks when it has k times as much as one needs.

    So what fits in all is the sum over k of the agents that have at least k times as much. That number only falls
    as k grows: between two k's that as many agents reach, all are known, and elsewhere the greater k bounds it
    from below.

    Args:
        most_tasks: no agent takes more.
    """

    def __init__(self, most_tasks: int) -> None:
        self._agents = {max(1, most_tasks) + 1: 0}

    @property
    def agents(self) -> int:
        """That take at least one."""
        return self._agents.get(1, 0)

    def unknown(self, most: int) -> list[int]:
        """For which k's agents are to be counted next, at most so many; none when everything is known."""
        if len(self._agents) == 1:
            (end,) = self._agents
            return list(range(1, min(most + 1, end)))
        gaps = [
            (low, high)
            for low, high in pairwise(sorted(self._agents))
            if high - low > 1 and self._agents[low] > self._agents[high]
        ]
        gaps.sort(key=lambda gap: (gap[1] - gap[0]) * (self._agents[gap[0]] - self._agents[gap[1]]), reverse=True)
        gaps = gaps[:most]
        asked: list[int] = []
        for low, high in gaps:
            step = max(1, -(-(high - low) // (most // len(gaps) + 1)))
            asked += range(low + step, high, step)
        return asked[:most]

    def learn(self, asked: Sequence[int], agents: Sequence[int]) -> None:
        self._agents.update(zip(asked, agents, strict=True))

    def total(self) -> int:
        """Of all that is known; never more than fit."""
        known = sorted(self._agents)
        between = sum((high - low - 1) * self._agents[high] for low, high in pairwise(known))
        return between + sum(self._agents.values())
