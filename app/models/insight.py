"""Answers about a whole fleet: why nothing fits, how much fits, what there is."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Final

import msgspec

from app.models.capacity import GpuType
from app.models.identity import AgentId


class Miss(msgspec.Struct, frozen=True, kw_only=True):
    """A near miss and exactly what it lacks; 0 for what it has enough of.

    Attributes:
        fails: the criteria that it fails, by their names in `Explanation.failing`.
    """

    agent_id: AgentId
    pool_name: str
    gpu_vram_available_gb: float
    cpu_cores_available: int
    lacks_gpu_vram_gb: float = 0.0
    lacks_cpu_cores: int = 0
    lacks_memory_gb: float = 0.0
    fails: tuple[str, ...] = ()


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A placeable agent that would fit if it were idle, with what it has free now."""

    agent_id: AgentId
    gpu_vram_available_gb: float
    cpu_cores_available: int


class Hidden(msgspec.Struct, frozen=True, kw_only=True):
    """Agents that have enough but that no search may return."""

    silent: int = 0
    busy: int = 0
    cordoned: int = 0


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why a search finds what it finds.

    Attributes:
        agents: placeable agents of the type (and pool) that was asked for.
        fitting: those that fit.
        failing: agents by exactly what they fail, as in {"gpu_vram": 3, "gpu_vram+cpu_cores": 1}.
        nearest: when nothing fits: up to 10 that lack VRAM alone, then up to 10 that lack cores alone, then up to
            10 that have both and fail another filter; if there is none of these, up to 10 that lack VRAM and
            cores.
        hidden: agents that would fit but are silent, busy or cordoned.
        possible: False when no machine of that type and pool is big enough even when idle; None when some
            machine does not say how big it is, or when there are more than 1,000 kinds of machines.
    """

    agents: int
    fitting: int
    failing: dict[str, int]
    nearest: list[Miss]
    hidden: Hidden
    possible: bool | None


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """How many tasks of one size fit now.

    Attributes:
        tasks: in all, each on one agent, as many on each as it has room for.
        agents: that take at least one.
        fragmentation: share of the free VRAM (of free cores for a task without VRAM) of placeable agents that
            no such task can use, 0.0 to 1.0; docs/http.md gives formula and source.
    """

    tasks: int
    agents: int
    fragmentation: float


class PoolTotals(msgspec.Struct, frozen=True, kw_only=True):
    """Totals of one pool and GPU type; free figures count placeable agents only."""

    agent_type: str
    pool_name: str
    gpu_type: GpuType
    online: int = 0
    busy: int = 0
    offline: int = 0
    cordoned: int = 0
    placeable: int = 0
    gpu_vram_available_gb: float = 0.0
    gpu_vram_total_gb: float = 0.0
    cpu_cores_available: int = 0
    cpu_cores_physical: int = 0


class Overall(msgspec.Struct, frozen=True, kw_only=True):
    """Totals over all pools, `pools` in number: a row for each agent and GPU type, without `pool_name`."""

    rows: list[PoolTotals]
    pools: int

    def beyond(self, named: Iterable[PoolTotals]) -> list[PoolTotals]:
        """What all pools but those in `named` add up to: rows without `pool_name`, none where nothing is left.

        Both were read one after the other, so what moved meanwhile may count twice or not at all, never below 0.
        """
        sums: dict[tuple[str, GpuType], list[float]] = {}
        for row in named:
            known = sums.setdefault((row.agent_type, row.gpu_type), [0.0] * len(_AMOUNTS))
            sums[row.agent_type, row.gpu_type] = [
                amount + getattr(row, name) for amount, name in zip(known, _AMOUNTS, strict=True)
            ]
        rest = []
        for row in self.rows:
            taken = sums.get((row.agent_type, row.gpu_type), [0.0] * len(_AMOUNTS))
            left = {
                name: type(getattr(row, name))(max(getattr(row, name) - amount, 0))
                for name, amount in zip(_AMOUNTS, taken, strict=True)
            }
            if any(left.values()):
                rest.append(msgspec.structs.replace(row, **left))
        return rest


_AMOUNTS: Final = PoolTotals.__struct_fields__[3:]


class TrendPoint(msgspec.Struct, frozen=True, kw_only=True):
    """What there was at one time, added up over all that a series is about."""

    at_ms: int
    online: int
    placeable: int
    gpu_vram_available_gb: float
    gpu_vram_total_gb: float
    cpu_cores_available: int
    cpu_cores_physical: int


class TrendSeries(msgspec.Struct, frozen=True, kw_only=True):
    """Points of one pool, of one GPU type, or of everything (the name is then empty), oldest first."""

    name: str
    points: list[TrendPoint]


class TotalsBy(StrEnum):
    """What totals are broken down by."""

    POOL_NAME = "pool_name"
    GPU_TYPE = "gpu_type"


class TrendQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which totals over which time; `by` None: one series of all that match."""

    hours: float = 24.0
    by: TotalsBy | None = None
    agent_type: str | None = None
    pool_name: str | None = None
    gpu_type: GpuType | None = None
