"""Explain, fit and summary against plain counting, over random fleets."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.index.clock import ManualClock
from app.index.opening import Index
from app.index.placement import from_ms
from app.models.capacity import AgentStatus, CapacityQuery, GpuType
from app.models.cordon import Cordon
from app.models.heartbeat import Heartbeat, ResourceMetrics
from app.models.identity import AgentId
from app.models.insight import Overall
from tests.consistency import assert_index_consistent
from tests.indexing import agent_id, apply_everything, index_settings, opened_index
from tests.servers import ValkeyServer

AGE_S = 60
"""Of everybody's last heartbeat, when questions are asked."""

START_MS = 1_800_000_000_000


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    pool_name: str
    status: AgentStatus
    cordoned: bool
    silent: bool
    gpu_type: GpuType
    vram: float
    used_vram: float
    cores: int
    used_cores: int
    memory: float

    @property
    def vram_total(self) -> float:
        return self.vram + self.used_vram

    @property
    def physical(self) -> int:
        return self.cores + self.used_cores

    @property
    def placeable(self) -> bool:
        return self.status is AgentStatus.ONLINE and not (self.cordoned or self.silent)

    def has(self, query: CapacityQuery) -> bool:
        return self.vram >= query.min_gpu_vram_gb and self.cores >= query.min_cpu_cores

    def heartbeat(self, number: int) -> Heartbeat:
        return Heartbeat(
            agent_id=agent_id(number),
            pool_name=self.pool_name,
            status=self.status,
            resource_metrics=ResourceMetrics(
                gpu_vram_available_gb=self.vram,
                gpu_vram_total_gb=self.vram_total,
                cpu_cores_available=self.cores,
                cpu_cores_physical=self.physical,
                memory_available_gb=self.memory,
                gpu_type=self.gpu_type,
            ),
        )


Fleet = list[tuple[int, Machine]]

machines = st.builds(
    Machine,
    pool_name=st.sampled_from(["default", "b"]),
    status=st.sampled_from([AgentStatus.ONLINE] * 4 + [AgentStatus.BUSY]),
    cordoned=st.sampled_from([False] * 4 + [True]),
    silent=st.sampled_from([False] * 5 + [True]),
    gpu_type=st.sampled_from([GpuType.NVIDIA, GpuType.AMD]),
    vram=st.sampled_from([0.0, 4.0, 7.5, 8.0, 16.0, 24.0]),
    used_vram=st.sampled_from([0.0, 8.0]),
    cores=st.integers(0, 20),
    used_cores=st.sampled_from([0, 4]),
    memory=st.sampled_from([8.0, 12.5, 64.0]),
)
queries = st.builds(
    CapacityQuery,
    min_gpu_vram_gb=st.sampled_from([0.0, 2.0, 4.0, 7.5, 8.0, 16.0, 30.0, 64.0]),
    min_cpu_cores=st.integers(1, 26),
    pool_name=st.sampled_from([None, "default", "b", "c"]),
    gpu_type=st.sampled_from([None, None, GpuType.AMD]),
    min_memory_gb=st.sampled_from([0.0, 0.0, 16.0, 128.0]),
    max_age_s=st.sampled_from([None, None, None, AGE_S - 1.0]),
)


async def settle(index: Index, clock: ManualClock, fleet: Fleet) -> None:
    """Everybody reports once, the silent ones never again, and some are cordoned."""
    for awake in (fleet, [(number, one) for number, one in fleet if not one.silent]):
        if awake:
            await index.log.append([one.heartbeat(number) for number, one in awake])
            await apply_everything(index)
        clock.advance(AGE_S)
    for number, one in fleet:
        if one.cordoned:
            await index.cordons.cordon(agent_id(number), Cordon(reason="r", actor="a", since=from_ms(START_MS)))


@settings(max_examples=50, deadline=None)
@given(st.lists(machines, max_size=25), st.lists(queries, min_size=1, max_size=4))
def test_answers_equal_plain_counting(
    valkey_server: ValkeyServer, made: list[Machine], asked: list[CapacityQuery]
) -> None:
    async def run() -> None:
        valkey_server.flush()
        clock = ManualClock(START_MS)
        fleet = list(enumerate(made))
        async with opened_index(index_settings(valkey_server.url), clock=clock) as index:
            await settle(index, clock, fleet)
            for query in asked:
                asked_for = [(n, one) for n, one in fleet if query.pool_name in (None, one.pool_name)]
                await check_explain(index, query, asked_for)
                await check_big_enough(index, query, asked_for)
                await check_fit(index, query, [one for _, one in asked_for if one.placeable])
            await check_summary(index, made)
            await assert_index_consistent(index)

    asyncio.run(run())


async def check_explain(index: Index, query: CapacityQuery, fleet: Fleet) -> None:
    explained = await index.insight.explain(query)
    placeable = [(n, one) for n, one in fleet if one.placeable]

    def criteria(one: Machine) -> str:
        lacks = ["gpu_vram"] * (one.vram < query.min_gpu_vram_gb) + ["cpu_cores"] * (
            one.cores < query.min_cpu_cores
        )
        return "+".join(lacks or refused(query, one))

    failing = Counter(criteria(one) for _, one in placeable)
    assert explained.agents == len(placeable)
    assert explained.fitting == failing.pop("", 0)
    assert explained.failing == dict(failing)
    would_fit = [one for _, one in fleet if one.has(query)]
    assert explained.hidden.silent == sum(one.silent for one in would_fit)
    assert explained.hidden.cordoned == sum(one.cordoned and not one.silent for one in would_fit)
    assert explained.hidden.busy == sum(
        one.status is AgentStatus.BUSY and not (one.cordoned or one.silent) for one in would_fit
    )
    check_possible(explained.possible, query, [one for _, one in fleet])
    assert [miss.agent_id for miss in explained.nearest] == nearest(query, placeable)
    for miss in explained.nearest:
        one = dict(fleet)[int(miss.agent_id[-12:], 16)]
        assert miss.lacks_gpu_vram_gb == max(0.0, query.min_gpu_vram_gb - one.vram)
        assert miss.lacks_cpu_cores == max(0, query.min_cpu_cores - one.cores)
        assert "+".join(miss.fails) == criteria(one)
        lacks_memory = max(0.0, query.min_memory_gb - one.memory) if "memory" in miss.fails else 0.0
        assert miss.lacks_memory_gb == lacks_memory


def check_possible(answer: bool | None, query: CapacityQuery, fleet: list[Machine]) -> None:  # noqa: FBT001  # as answered
    big_enough = [
        one
        for one in fleet
        if query.gpu_type in (None, one.gpu_type)
        and (one.vram_total or 99) >= query.min_gpu_vram_gb
        and (one.physical or 99) >= query.min_cpu_cores
    ]
    certain = [
        one
        for one in big_enough
        if (one.vram_total and one.physical) or (one.placeable and one.has(query) and query.gpu_type is None)
    ]
    assert answer == (True if certain else None if big_enough else False)


def refused(query: CapacityQuery, one: Machine) -> list[str]:
    """The filters that refuse it."""
    wrong_gpu = query.gpu_type not in (None, one.gpu_type)
    filters = {
        "gpu_type": wrong_gpu,
        "memory": one.memory < query.min_memory_gb,
        "age": query.max_age_s is not None and query.max_age_s < AGE_S,
    }
    return [name for name, refuses in filters.items() if refuses]


def nearest(query: CapacityQuery, placeable: Fleet) -> list[AgentId]:
    if any(one.has(query) and not refused(query, one) for _, one in placeable):
        return []
    wanted = [(n, one) for n, one in placeable if not refused(query, one) and one.cores >= 1]

    def most_vram(fleet: Fleet) -> Fleet:
        return sorted(fleet, key=lambda one: (one[1].vram, one[0]), reverse=True)[:10]

    short_of_vram = most_vram([(n, one) for n, one in wanted if one.cores >= query.min_cpu_cores])
    enough_vram = [(n, one) for n, one in wanted if one.vram >= query.min_gpu_vram_gb]
    short_of_cores = sorted(enough_vram, key=lambda one: (one[1].cores, one[1].vram, one[0]), reverse=True)[:10]
    by_filters = most_vram([(n, one) for n, one in placeable if one.has(query)])
    return [agent_id(n) for n, _ in [*short_of_vram, *short_of_cores, *by_filters] or most_vram(wanted)]


async def check_big_enough(index: Index, query: CapacityQuery, fleet: Fleet) -> None:
    found = await index.insight.big_enough(query)
    assert {one.agent_id: (one.gpu_vram_available_gb, one.cpu_cores_available) for one in found} == {
        agent_id(n): (one.vram, one.cores)
        for n, one in fleet
        if one.placeable
        and query.gpu_type in (None, one.gpu_type)
        and one.vram_total >= query.min_gpu_vram_gb
        and one.physical >= query.min_cpu_cores
    }


async def check_fit(index: Index, query: CapacityQuery, placeable: list[Machine]) -> None:
    fit = await index.insight.fit(query)

    def room(one: Machine) -> int:
        too_many = (
            k
            for k in itertools.count(1)
            if k * query.min_gpu_vram_gb > one.vram or k * query.min_cpu_cores > one.cores
        )
        return next(too_many) - 1

    rooms = [room(one) for one in placeable]
    assert (fit.tasks, fit.agents) == (sum(rooms), sum(n > 0 for n in rooms))
    if query.min_gpu_vram_gb:
        free, used = sum(one.vram for one in placeable), sum(rooms) * query.min_gpu_vram_gb
    else:
        free, used = float(sum(one.cores for one in placeable)), float(sum(rooms) * query.min_cpu_cores)
    assert fit.fragmentation == pytest.approx(1 - used / free if free else 0.0)


async def check_summary(index: Index, fleet: list[Machine]) -> None:
    overall = await index.insight.overall()
    assert sum(row.placeable for row in overall.rows) == sum(one.placeable for one in fleet)
    assert sum(row.gpu_vram_available_gb for row in overall.rows) == sum(
        one.vram for one in fleet if one.placeable
    )
    rows, rest = await index.insight.summary(limit=100)
    assert overall.beyond(rows) == []
    assert rest is None
    assert {(row.pool_name, row.gpu_type) for row in rows} == {(one.pool_name, one.gpu_type) for one in fleet}
    for row in rows:
        group = [one for one in fleet if (one.pool_name, one.gpu_type) == (row.pool_name, row.gpu_type)]
        placeable = [one for one in group if one.placeable]
        assert row.placeable == len(placeable)
        assert row.gpu_vram_available_gb == sum(one.vram for one in placeable)
        assert row.cpu_cores_available == sum(one.cores for one in placeable)
        assert row.gpu_vram_total_gb == sum(one.vram_total for one in group)
        assert row.cordoned == sum(one.cordoned for one in group)
        assert row.busy == sum(one.status is AgentStatus.BUSY for one in group)


async def test_a_summary_of_many_pools_comes_in_pages_largest_pools_first(redis_url: str) -> None:
    async with opened_index(index_settings(redis_url)) as index:
        names = [f"pool {n}" for n in range(60) for _ in range(1 + n % 3)]
        metrics = ResourceMetrics(gpu_vram_available_gb=1.0, cpu_cores_available=2)
        fleet = [
            Heartbeat(agent_id=agent_id(n), pool_name=name, agent_type=f"type-{n % 2}", resource_metrics=metrics)
            for n, name in enumerate(names)
        ]
        await index.log.append(fleet)
        await apply_everything(index)
        whole, _ = await index.insight.summary(limit=1000)
        pages: list[Any] = []
        after: str | None = None
        while pages == [] or after is not None:
            page, after = await index.insight.summary(limit=7, after=after)
            pages += page
        assert pages == whole
        assert sum(row.placeable for row in whole) == len(names)
        first = [row.placeable for row in whole if row.agent_type == "type-0"]
        assert first == sorted(first, reverse=True)
        overall = await index.insight.overall()
        assert overall.pools == len(whole)
        assert sum(row.placeable for row in overall.rows) == len(names)
        assert {row.agent_type for row in overall.rows} == {"type-0", "type-1"}
        assert overall.beyond(whole) == []
        assert sum(row.placeable for row in overall.beyond(whole[:9])) == sum(row.placeable for row in whole[9:])
        assert {row.agent_type for row in (await index.insight.overall(agent_type="type-1")).rows} == {"type-1"}
        assert await index.insight.overall(agent_type="nobody") == Overall(rows=[], pools=0)


async def test_one_pool_of_many_types_comes_in_pages_too(redis_url: str) -> None:
    async with opened_index(index_settings(redis_url)) as index:
        metrics = ResourceMetrics(gpu_vram_available_gb=1.0, cpu_cores_available=2)
        fleet = [
            Heartbeat(
                agent_id=agent_id(n),
                pool_name="mine" if n % 3 else "other",
                agent_type=f"type-{n:02}",
                resource_metrics=metrics,
            )
            for n in range(30)
        ]
        await index.log.append(fleet)
        await apply_everything(index)
        found: list[str] = []
        after: str | None = None
        while found == [] or after is not None:
            page, after = await index.insight.summary(pool_name="mine", limit=3, after=after)
            assert {row.pool_name for row in page} <= {"mine"}
            found += [row.agent_type for row in page]
        assert found == [f"type-{n:02}" for n in range(30) if n % 3]


async def test_totals_of_very_many_types_are_read_in_parts(redis_url: str) -> None:
    """Each call holds Redis for as long as a few types take."""
    async with opened_index(index_settings(redis_url)) as index:
        client: Any = index.capacity._client
        metrics = ResourceMetrics(gpu_vram_available_gb=1.0, cpu_cores_available=2)
        made = [(f"t{n % 600:03}", f"pool {n // 600}") for n in range(900)]
        fleet = [
            Heartbeat(agent_id=agent_id(n), agent_type=kind, pool_name=pool, resource_metrics=metrics)
            for n, (kind, pool) in enumerate(made)
        ]
        await index.log.append(fleet)
        await apply_everything(index)
        whole, rest = await index.insight.summary(limit=1000)
        assert rest is None
        assert sorted((row.agent_type, row.pool_name) for row in whole) == sorted(made)
        assert [row.agent_type for row in whole] == sorted(kind for kind, _ in made)
        pages: list[Any] = []
        after: str | None = None
        while pages == [] or after is not None:
            page, after = await index.insight.summary(limit=260, after=after)
            pages += page
        assert pages == whole
        mine, _ = await index.insight.summary(pool_name="pool 1", limit=1000)
        assert [row.agent_type for row in mine] == [f"t{n:03}" for n in range(300)]
        overall = await index.insight.overall()
        assert overall.pools == 900
        assert [row.placeable for row in overall.rows] == [2] * 300 + [1] * 300

        async def calls(command: str) -> int:
            stats = await client.info("commandstats")
            return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])

        before = await calls("hkeys"), await calls("evalsha")
        await index.insight.overall()
        await index.insight.summary(limit=10, after="880")
        assert await calls("hkeys") == before[0]
        assert await calls("evalsha") - before[1] > 24
