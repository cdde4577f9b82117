"""Searches against a plain in-memory oracle, over random fleets and histories, several ingests side by side."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from app.index.clock import ManualClock
from app.index.opening import Index
from app.models.capacity import AgentStatus, CapacityQuery, GpuType
from app.models.heartbeat import Heartbeat, ResourceMetrics
from app.models.identity import AgentId
from tests.consistency import assert_index_consistent
from tests.indexing import agent_id, heartbeat, index_settings, opened_index, unapplied
from tests.servers import ValkeyServer
from workers.clock_watch import ClockWatch
from workers.ingest import Ingest
from workers.reaper import Reaper

OFFLINE_AFTER_S = 90.0
START_MS = 1_800_000_000_000

# Few values, so that ties, thresholds between rungs and empty bands are common.
vrams = st.sampled_from([None, 0.0, 4.0, 7.9, 8.0, 8.1, 12.0, 24.0])
cores = st.sampled_from([None, 0, 1, 2, 3, 7, 8, 9, 11, 12, 13, 15, 16, 31, 33, 64, 65_536])
metrics = st.one_of(
    st.none(),
    st.builds(
        ResourceMetrics,
        gpu_vram_available_gb=vrams,
        cpu_cores_available=cores,
        memory_available_gb=st.sampled_from([None, 1.0, 32.0]),
        gpu_vram_total_gb=st.sampled_from([None, 24.0, 80.0]),
        cpu_cores_physical=st.sampled_from([None, 16, 128]),
        gpu_type=st.sampled_from([None, *GpuType]),
    ),
)
beats = st.builds(
    lambda number, **fields: Heartbeat(agent_id=agent_id(number), **fields),
    number=st.integers(0, 24),
    agent_type=st.sampled_from(["desktop", "desktop", "infra"]),
    pool_name=st.sampled_from(["default", "a b:c", "pool/é"]),
    status=st.sampled_from([AgentStatus.ONLINE, AgentStatus.ONLINE, AgentStatus.BUSY, AgentStatus.OFFLINE]),
    resource_metrics=metrics,
)
waits = st.sampled_from([1.0, 15.0, 45.0, 91.0])
actions = st.one_of(st.lists(beats, min_size=1, max_size=12), waits, st.just("sweep"))
queries = st.builds(
    CapacityQuery,
    min_gpu_vram_gb=st.sampled_from([0.0, 4.0, 7.95, 8.0, 24.0, 25.0]),
    min_cpu_cores=st.sampled_from([1, 2, 3, 5, 8, 9, 12, 13, 16, 17, 64, 65_536, 2**31 - 1]),
    agent_type=st.sampled_from(["desktop", "infra", "nobody"]),
    pool_name=st.sampled_from([None, None, "default", "a b:c", "pool/é"]),
    gpu_type=st.sampled_from([None, None, *GpuType]),
    min_memory_gb=st.sampled_from([0.0, 0.0, 2.0]),
    max_age_s=st.sampled_from([None, None, 30.0]),
    limit=st.sampled_from([1, 2, 3, 7, 1000]),
)


class Oracle:
    """What the fleet's agents last said, and when it was received."""

    def __init__(self) -> None:
        self.latest: dict[AgentId, tuple[Heartbeat, int]] = {}

    def hear(self, beat: Heartbeat, now_ms: int) -> None:
        self.latest[beat.agent_id] = (beat, now_ms)

    def search(self, query: CapacityQuery, now_ms: int) -> list[tuple[float, AgentId]]:
        found = []
        for beat, seen_ms in self.latest.values():
            sent = beat.metrics
            if sent is None or beat.status is not AgentStatus.ONLINE or beat.agent_type != query.agent_type:
                continue
            vram = sent.gpu_vram_available_gb or 0.0
            free_cores = 1 if sent.cpu_cores_available is None else sent.cpu_cores_available
            if (
                now_ms - seen_ms <= OFFLINE_AFTER_S * 1000
                and vram >= query.min_gpu_vram_gb
                and free_cores >= query.min_cpu_cores
                and query.pool_name in (None, beat.pool_name)
                and query.gpu_type in (None, sent.gpu_type or GpuType.NONE)
                and (sent.memory_available_gb or 0.0) >= query.min_memory_gb
                and (query.max_age_s is None or now_ms - seen_ms <= query.max_age_s * 1000)
            ):
                found.append((vram, beat.agent_id))
        return sorted(found, reverse=True)


async def drain(index: Index, ingests: list[Ingest]) -> None:
    while await unapplied(index):
        await asyncio.gather(*(ingest.run_once() for ingest in ingests))


async def paged(index: Index, query: CapacityQuery) -> list[tuple[float, AgentId]]:
    """All pages of a search, followed by their cursors."""
    rows: list[tuple[float, AgentId]] = []
    while True:
        page = await index.capacity.find(query)
        rows += [(row.gpu_vram_available_gb, row.agent_id) for row in page.agents]
        if page.cursor is None:
            return rows
        query = msgspec.structs.replace(query, after=page.cursor)


@settings(max_examples=60, deadline=None)
@given(st.lists(actions, min_size=1, max_size=12), st.lists(queries, min_size=1, max_size=12))
def test_searches_equal_the_oracle(
    valkey_server: ValkeyServer, history: list[list[Heartbeat] | float | str], asked: list[CapacityQuery]
) -> None:
    async def run() -> None:
        valkey_server.flush()
        clock = ManualClock(START_MS)
        oracle = Oracle()
        async with opened_index(index_settings(valkey_server.url), clock=clock) as index:
            ingests = [Ingest(index.index_reader(), index.upkeep) for _ in range(3)]
            reaper = Reaper(index.upkeep, "test", every_s=0, watch=ClockWatch(index.upkeep))
            for action in history:
                if isinstance(action, float):
                    clock.advance(action)
                elif isinstance(action, str):
                    await reaper.sweep()
                else:
                    await index.log.append(action)
                    for beat in action:
                        oracle.hear(beat, clock.now_ms())
                    await drain(index, ingests)
                await assert_index_consistent(index)
            for query in asked:
                expected = oracle.search(query, clock.now_ms())
                page = await index.capacity.find(query)
                found = [(row.gpu_vram_available_gb, row.agent_id) for row in page.agents]
                assert found == expected[: query.limit], query
                assert await paged(index, query) == expected, query
                if page.total is not None:
                    assert page.total >= len(expected)

    asyncio.run(run())


def test_a_fleet_of_equals_is_paged_without_loss_or_repetition(valkey_server: ValkeyServer) -> None:
    """Ties everywhere: the cursor must bisect ranks among equal scores."""

    async def run() -> None:
        valkey_server.flush()
        # Equal in what orders them, and spread over every set that the search merges.
        fleet = [heartbeat(n, vram=24.0, cores=9 + n % 8) for n in range(700)]
        random.Random(7).shuffle(fleet)
        async with opened_index(index_settings(valkey_server.url)) as index:
            await index.log.append(fleet)
            await drain(index, [Ingest(index.index_reader(), index.upkeep)])
            for limit in (1, 99, 128, 129, 400, 700, 1000):
                query = CapacityQuery(min_gpu_vram_gb=24.0, min_cpu_cores=9, limit=limit)
                if limit > 1:
                    rows = await paged(index, query)
                    assert [row[1] for row in rows] == [agent_id(n) for n in reversed(range(700))]
                page = await index.capacity.find(query)
                assert page.total == 700
                assert len(page.agents) == min(limit, 700)
                assert page.more == (limit < 700)
                assert Counter(row.agent_id for row in page.agents).most_common(1)[0][1] == 1

    asyncio.run(run())
