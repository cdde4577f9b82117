"""Which of many searches a change may concern: thresholds sorted so that most changes cost one comparison."""

from __future__ import annotations

from bisect import bisect_right, insort
from typing import Final

from app.models.capacity import CapacityQuery

_Key = tuple[float, int]

_NEVER: Final = float("inf")


class Thresholds:
    """The (VRAM, cores) pairs of searches of one type and pool.

    Kept by cores, within the same cores by VRAM, with the least VRAM of each cores and everything below: a change
    that no search has been waiting for is told from the others by one look, however many searches there are.
    """

    def __init__(self) -> None:
        self._levels: dict[int, list[_Key]] = {}
        self._queries: dict[_Key, CapacityQuery] = {}
        self._numbers: dict[CapacityQuery, int] = {}
        self._cores: list[int] = []
        self._least: list[float] | None = None
        self._next = 0

    def __len__(self) -> int:
        return len(self._queries)

    def add(self, query: CapacityQuery) -> None:
        if query in self._numbers:
            return
        level = self._levels.get(query.min_cpu_cores)
        if level is None:
            level = self._levels[query.min_cpu_cores] = []
            insort(self._cores, query.min_cpu_cores)
        key = (query.min_gpu_vram_gb, self._next)
        insort(level, key)
        self._queries[key] = query
        self._numbers[query] = self._next
        self._next += 1
        self._least = None

    def remove(self, query: CapacityQuery) -> None:
        number = self._numbers.pop(query, None)
        if number is None:
            return
        key = (query.min_gpu_vram_gb, number)
        del self._queries[key]
        level = self._levels[query.min_cpu_cores]
        del level[bisect_right(level, key) - 1]
        if not level:
            del self._levels[query.min_cpu_cores]
            self._cores.remove(query.min_cpu_cores)
        self._least = None

    def any_met_by(self, gpu_vram_gb: float, cpu_cores: int) -> bool:
        return self._reaches(bisect_right(self._cores, cpu_cores), gpu_vram_gb)

    def met_by(self, gpu_vram_gb: float, cpu_cores: int) -> list[CapacityQuery]:
        """The searches whose thresholds that much free reaches."""
        levels = bisect_right(self._cores, cpu_cores)
        if not self._reaches(levels, gpu_vram_gb):
            return []
        met: list[CapacityQuery] = []
        for cores in self._cores[:levels]:
            level = self._levels[cores]
            if level[0][0] <= gpu_vram_gb:
                met += [self._queries[key] for key in level[: bisect_right(level, (gpu_vram_gb, self._next))]]
        return met

    def all(self) -> list[CapacityQuery]:
        return list(self._numbers)

    def _reaches(self, levels: int, gpu_vram_gb: float) -> bool:
        return levels > 0 and self._least_vram()[levels - 1] <= gpu_vram_gb

    def _least_vram(self) -> list[float]:
        if self._least is None:
            self._least, least = [], _NEVER
            for cores in self._cores:
                least = min(least, self._levels[cores][0][0])
                self._least.append(least)
        return self._least
