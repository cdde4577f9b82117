"""Answers about the whole fleet from counts and slices: explain, fit, summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, cast
from urllib.parse import unquote

import msgspec

from app.index.keys import Keys, encode_pool
from app.index.lookup import Lookups, Steps
from app.index.scripts import Argument, Call, load
from app.index.tasksums import TaskSums
from app.models.capacity import AvailableCapacity, CapacityQuery, GpuType
from app.models.identity import AgentId
from app.models.insight import Candidate, Explanation, Fit, Hidden, Miss, Overall, PoolTotals

_NEAREST: Final = 10
_FIT_SLICE: Final = 32
_FIT_CALLS: Final = 64
_MOST_CORES: Final = 65_536
_REFUSED_SLICE: Final = 1_000
"""Most agents that are looked at one by one for filters that the sets do not know."""

_BIG_ENOUGH: Final = 100
_BIG_ENOUGH_SHAPES: Final = 1_000
"""Kinds of machines that one call looks through: about a millisecond of Redis's time."""

_SUMMARY_SLICE: Final = 25
_TYPES_SLICE: Final = 50
"""Types whose totals one call reads: less than a millisecond of Redis's time."""

_TYPES_SCANNED: Final = 500

_MIB: Final = 1024


class _Refused(msgspec.Struct, frozen=True, kw_only=True):
    """Agents with enough VRAM and cores, held against the filters that the sets do not know.

    Attributes:
        fails: those that a filter refuses, most VRAM first, each with the filters that do.
        passed: how many no filter refuses.
        all_seen: whether these are all there are.
    """

    fails: list[tuple[AvailableCapacity, list[str]]] = []
    passed: int = 0
    all_seen: bool = True

    def counts(self) -> dict[str, int]:
        return Counter("+".join(criteria) for _, criteria in self.fails)


class Insights:
    """The answers of one shard as steps, like `Lookups`, on which they stand."""

    def __init__(self, keys: Keys, lookups: Lookups) -> None:
        self._keys = keys
        self._lookups = lookups

    def explain(self, query: CapacityQuery) -> Steps[Explanation]:
        """Exact but for filters beyond VRAM, cores and pool, which are judged on the first 1,000 that pass."""
        yield from self._lookups.sweep()
        gpu_type = "" if query.gpu_type is None else query.gpu_type.value
        counts = yield from self._counts("explain", query, gpu_type)
        placeable, with_vram, with_cores, both, silent, busy, cordoned, possible = counts
        # Each is counted at its own moment of a set's life: a difference may be off, but never below nothing.
        failing = {
            "gpu_vram": max(0, with_cores - both),
            "cpu_cores": max(0, with_vram - both),
            "gpu_vram+cpu_cores": max(0, placeable - with_vram - with_cores + both),
        }
        fitting, refused = both, _Refused()
        if both and not query.counted:
            refused = yield from self._refused(query)
            failing |= refused.counts()
            # Of more than were looked at one by one, some may fit.
            fitting = refused.passed if refused.all_seen else max(0, both - len(refused.fails))
        nothing_fits = fitting == 0 or bool(refused.fails and not refused.passed)
        nearest = (yield from self._nearest(query, failing, refused)) if nothing_fits else []
        return Explanation(
            agents=placeable,
            fitting=fitting,
            failing={criteria: agents for criteria, agents in failing.items() if agents},
            nearest=nearest,
            hidden=Hidden(silent=silent, busy=busy, cordoned=cordoned),
            possible=None if possible < 0 else bool(possible),
        )

    def fit(self, query: CapacityQuery) -> Steps[Fit]:
        """Exact where no agent takes more than 32 tasks, and beyond for as long as 64 slices of counts tell.

        What is not told is counted from below.
        """
        yield from self._lookups.sweep()
        sums = TaskSums(_MOST_CORES // query.min_cpu_cores)
        vram_mib = cores = 0
        for _ in range(_FIT_CALLS):
            asked = sums.unknown(_FIT_SLICE)
            if not asked:
                break
            vram_mib, cores, *counts = yield from self._counts("fit", query, *asked)
            sums.learn(asked, counts)
        tasks = sums.total()
        free, used = (
            (vram_mib / _MIB, tasks * query.min_gpu_vram_gb)
            if query.min_gpu_vram_gb > 0
            else (float(cores), float(tasks * query.min_cpu_cores))
        )
        fragmentation = max(0.0, 1.0 - used / free) if free > 0 else 0.0
        return Fit(tasks=tasks, agents=sums.agents, fragmentation=fragmentation)

    def big_enough(self, query: CapacityQuery) -> Steps[list[Candidate]]:
        gpu_type = "" if query.gpu_type is None else query.gpu_type.value
        reply = yield from self._call("big_enough", query, gpu_type, _BIG_ENOUGH, _BIG_ENOUGH_SHAPES)
        found = []
        for agent_id, figures in zip(reply[::2], reply[1::2], strict=True):
            vram, _, cores = figures.decode().partition(" ")
            found.append(
                Candidate(
                    agent_id=AgentId(agent_id.decode()),
                    gpu_vram_available_gb=float(vram),
                    cpu_cores_available=int(cores),
                )
            )
        return found

    def summary(
        self, *, agent_type: str | None, pool_name: str | None, limit: int, after: str | None
    ) -> Steps[tuple[list[PoolTotals], str | None]]:
        """Each type's largest pools first, at most `limit` pools; `after` is what the page before returned."""
        pool = "" if pool_name is None else encode_pool(pool_name)
        rows: list[PoolTotals] = []
        taken, begin = 0, int(after) if after else 0
        skip = begin
        parts: list[list[str]] = [[] if agent_type is None else [agent_type]]
        while parts and taken < limit:
            size = min(_SUMMARY_SLICE, limit - taken)
            reply = yield from self._of_types("summary", (pool, skip, size), parts[0])
            if reply[0] == b"many":
                parts = yield from self._types()
                continue
            found = reply[2:]
            for row_type, row_pool, figures in found:
                rows += _totals(row_type.decode(), unquote(row_pool.decode()), figures)
            taken += len(found)
            skip += len(found)
            if len(found) < size:
                skip = reply[1]
                del parts[0]
        return rows, str(begin + taken) if parts else None

    def overall(self, *, agent_type: str | None) -> Steps[Overall]:
        """Of one moment, unless there are very many types."""
        reply = yield from self._of_types("overall", (), [] if agent_type is None else [agent_type])
        found = reply[1:]
        if reply[0] == b"many":
            for part in (yield from self._types()):
                found += (yield from self._of_types("overall", (), part))[1:]
        rows: list[PoolTotals] = []
        for row_type, _, figures in found:
            rows += _totals(row_type.decode(), "", figures)
        return Overall(rows=rows, pools=sum(int(pools) for _, pools, _ in found))

    def _of_types(self, script: str, arguments: tuple[Argument, ...], types: list[str]) -> Steps[list[Any]]:
        reply = yield lambda epoch: Call(
            load(script), self._keys.prefix, ("", "", epoch, _TYPES_SLICE, *arguments, *types)
        )
        return cast("list[Any]", reply)

    def _types(self) -> Steps[list[list[str]]]:
        """All types in order, in parts of which one call each may read the totals."""
        types: set[str] = set()
        cursor = "0"
        while True:
            reply = yield lambda epoch, cursor=cursor: Call(  # type: ignore[misc]  # binds this round's
                load("types"), self._keys.prefix, ("", "", epoch, cursor, _TYPES_SCANNED)
            )
            types.update(name.decode() for name in reply[2:])
            cursor = reply[1].decode()
            if cursor == "0":
                ordered = sorted(types)
                return [ordered[at : at + _TYPES_SLICE] for at in range(0, len(ordered), _TYPES_SLICE)]

    def _counts(self, script: str, query: CapacityQuery, *more: Argument) -> Steps[list[int]]:
        return [int(number) for number in (yield from self._call(script, query, *more))]

    def _call(self, script: str, query: CapacityQuery, *more: Argument) -> Steps[list[Any]]:
        reply = yield lambda epoch: Call(
            load(script),
            self._keys.prefix,
            (
                "",
                "",
                epoch,
                query.agent_type,
                "" if query.pool_name is None else encode_pool(query.pool_name),
                repr(query.min_gpu_vram_gb),
                query.min_cpu_cores,
                *more,
            ),
        )
        return cast("list[Any]", reply[1:])

    def _nearest(self, query: CapacityQuery, failing: Mapping[str, int], refused: _Refused) -> Steps[list[Miss]]:
        """Short of VRAM alone, short of cores alone, refused by a filter alone; else short of VRAM and cores.

        Within each kind those that lack least come first; of the refused those with the most VRAM. A kind of which
        there is nobody is not looked for.
        """
        less_vram = msgspec.structs.replace(query, min_gpu_vram_gb=0.0, limit=_NEAREST, after=None)
        short_of_vram: list[AvailableCapacity] = []
        if failing["gpu_vram"]:
            short_of_vram = (yield from self._lookups.find(less_vram, with_total=False)).agents
        short_of_cores: list[AvailableCapacity] = []
        if failing["cpu_cores"]:
            short_of_cores = yield from self._short_of_cores(query)
        misses = [_miss(query, row) for row in [*short_of_vram, *short_of_cores]]
        for row, criteria in refused.fails[:_NEAREST]:
            misses.append((yield from self._refused_miss(query, row, criteria)))
        if misses:
            return misses
        anyone = msgspec.structs.replace(less_vram, min_cpu_cores=1)
        page = yield from self._lookups.find(anyone, with_total=False)
        return [_miss(query, row) for row in page.agents]

    def _short_of_cores(self, query: CapacityQuery) -> Steps[list[AvailableCapacity]]:
        if not query.counted:
            # Level by level it would be a search for each number of cores that somebody has.
            anyone = msgspec.structs.replace(query, min_cpu_cores=1, limit=_REFUSED_SLICE, after=None)
            page = yield from self._lookups.find(anyone, with_total=False)
            return sorted(page.agents, key=_most_cores, reverse=True)[:_NEAREST]
        (cores,) = yield from self._counts("nearest_cores", query, _NEAREST)
        # Fewer than ten have more cores than this: with as many again, ten of those that have exactly this many.
        more = msgspec.structs.replace(query, min_cpu_cores=cores, limit=2 * _NEAREST, after=None)
        rows = (yield from self._lookups.find(more, with_total=False)).agents
        if len(rows) == 2 * _NEAREST:
            most = msgspec.structs.replace(more, min_cpu_cores=cores + 1)
            known = {row.agent_id for row in rows}
            page = yield from self._lookups.find(most, with_total=False)
            rows += [row for row in page.agents if row.agent_id not in known]
        return sorted(rows, key=_most_cores, reverse=True)[:_NEAREST]

    def _refused_miss(self, query: CapacityQuery, row: AvailableCapacity, criteria: list[str]) -> Steps[Miss]:
        lacks_gb = 0.0
        if "memory" in criteria:
            agent = yield from self._lookups.get(row.agent_id)
            has_gb = 0.0 if agent is None else agent.memory_available_gb
            lacks_gb = round(max(0.0, query.min_memory_gb - has_gb), 6)
        return msgspec.structs.replace(_miss(query, row), lacks_memory_gb=lacks_gb, fails=tuple(criteria))

    def _refused(self, query: CapacityQuery) -> Steps[_Refused]:
        """Which of the agents with enough VRAM and cores the other filters refuse, and which filters do."""
        limited = msgspec.structs.replace(
            query, gpu_type=None, min_memory_gb=0.0, max_age_s=None, limit=_REFUSED_SLICE, after=None
        )
        page = yield from self._lookups.find(limited, with_total=False)
        filters: dict[str, Any] = {
            "gpu_type": query.gpu_type,
            "memory": query.min_memory_gb or None,
            "age": query.max_age_s,
        }
        named = {"gpu_type": "gpu_type", "memory": "min_memory_gb", "age": "max_age_s"}
        fails: dict[AgentId, list[str]] = {row.agent_id: [] for row in page.agents}
        for criterion, value in filters.items():
            if value is None:
                continue
            one = msgspec.structs.replace(limited, **{named[criterion]: value})
            passing = {row.agent_id for row in (yield from self._lookups.find(one, with_total=False)).agents}
            for agent_id in fails.keys() - passing:
                fails[agent_id].append(criterion)
        return _Refused(
            fails=[(row, fails[row.agent_id]) for row in page.agents if fails[row.agent_id]],
            passed=sum(not criteria for criteria in fails.values()),
            all_seen=not page.more,
        )


def _most_cores(row: AvailableCapacity) -> tuple[int, float, AgentId]:
    return row.cpu_cores_available, row.gpu_vram_available_gb, row.agent_id


def _miss(query: CapacityQuery, row: AvailableCapacity) -> Miss:
    lacks_vram = query.min_gpu_vram_gb > row.gpu_vram_available_gb
    lacks_cores = query.min_cpu_cores > row.cpu_cores_available
    return Miss(
        agent_id=row.agent_id,
        pool_name=row.pool_name,
        gpu_vram_available_gb=row.gpu_vram_available_gb,
        cpu_cores_available=row.cpu_cores_available,
        lacks_gpu_vram_gb=round(max(0.0, query.min_gpu_vram_gb - row.gpu_vram_available_gb), 6),
        lacks_cpu_cores=max(0, query.min_cpu_cores - row.cpu_cores_available),
        fails=("gpu_vram",) * lacks_vram + ("cpu_cores",) * lacks_cores,
    )


def _totals(agent_type: str, pool_name: str, figures: list[bytes]) -> list[PoolTotals]:
    """One row per GPU type of the pool's flat figures: `gpu_type:figure`, number, …"""
    by_gpu: dict[str, dict[str, int]] = {}
    for field, number in zip(figures[::2], figures[1::2], strict=True):
        gpu, figure = field.decode().split(":")
        by_gpu.setdefault(gpu, {})[figure] = int(number)
    return [
        PoolTotals(
            agent_type=agent_type,
            pool_name=pool_name,
            gpu_type=GpuType(gpu),
            online=numbers.get("online", 0),
            busy=numbers.get("busy", 0),
            offline=numbers.get("offline", 0),
            cordoned=numbers.get("cordoned", 0),
            placeable=numbers.get("placeable", 0),
            gpu_vram_available_gb=numbers.get("vram_available_mib", 0) / _MIB,
            gpu_vram_total_gb=numbers.get("vram_total_mib", 0) / _MIB,
            cpu_cores_available=numbers.get("cores_available", 0),
            cpu_cores_physical=numbers.get("cores_physical", 0),
        )
        for gpu, numbers in sorted(by_gpu.items())
        if any(numbers.values())
    ]


class RedisInsight:
    """Implements `FleetInsight`, run by whatever runs lookups."""

    def __init__(self, insights: Insights, run: Callable[[Callable[[], Steps[Any]]], Awaitable[Any]]) -> None:
        self._insights = insights
        self._run = run

    async def explain(self, query: CapacityQuery) -> Explanation:
        return cast(Explanation, await self._run(lambda: self._insights.explain(query)))

    async def fit(self, query: CapacityQuery) -> Fit:
        return cast(Fit, await self._run(lambda: self._insights.fit(query)))

    async def big_enough(self, query: CapacityQuery) -> list[Candidate]:
        return cast("list[Candidate]", await self._run(lambda: self._insights.big_enough(query)))

    async def summary(
        self, *, agent_type: str | None = None, pool_name: str | None = None, limit: int, after: str | None = None
    ) -> tuple[list[PoolTotals], str | None]:
        found = await self._run(
            lambda: self._insights.summary(agent_type=agent_type, pool_name=pool_name, limit=limit, after=after)
        )
        return cast("tuple[list[PoolTotals], str | None]", found)

    async def overall(self, *, agent_type: str | None = None) -> Overall:
        return cast(Overall, await self._run(lambda: self._insights.overall(agent_type=agent_type)))
