"""When entries were trimmed before they were recorded, the record's current state becomes exact all the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client import REGISTRY

from app.index.clock import ManualClock
from app.index.opening import Index
from app.index.placement import from_ms
from app.models.agent import AgentFilter
from app.models.capacity import AgentStatus, CapacityQuery
from app.models.cordon import Cordon
from app.record import Record, migrate, open_record
from tests.indexing import agent_id, apply_everything, heartbeat, index_settings, opened_index
from tests.servers import wait_until_async
from workers.reaper import Reaper
from workers.recorder import Reconcile, Recorder


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_800_000_000_000)


@pytest.fixture
async def index(redis_url: str, clock: ManualClock) -> AsyncIterator[Index]:
    async with opened_index(index_settings(redis_url), clock=clock) as index:
        clock.advance(90)
        yield index


@pytest.fixture
async def record(record_url: str) -> AsyncIterator[Record]:
    settings = index_settings("redis://unused", database_url=record_url)
    await migrate(settings.record_url)
    record = open_record(settings)
    yield record
    await record.close()


def lost_entries() -> float:
    return REGISTRY.get_sample_value("headroom_lost_entries_total", {"group": "record"}) or 0.0


async def test_what_was_lost_on_the_way_to_the_record_is_taken_from_the_index(
    index: Index, record: Record, clock: ManualClock
) -> None:
    client: Any = index.capacity._client
    recorder = Recorder(index.record_reader(), record.writer)
    reconcile = Reconcile(index.states, record.writer)
    await index.log.append([heartbeat(n, seq=1) for n in range(6)])
    await apply_everything(index)
    await recorder.run_once()
    assert await reconcile.reconcile() == 0

    await index.log.append([heartbeat(n, vram=20.0 + n, seq=2) for n in range(4)])
    await index.log.append([heartbeat(7, seq=1), heartbeat(4, seq=2, status=AgentStatus.BUSY)])
    await apply_everything(index)
    cordon = Cordon(reason="r", actor="a", since=from_ms(clock.now_ms()))
    await index.cordons.cordon(agent_id(3), cordon)
    await apply_everything(index)
    assert await index.capacity.forget(agent_id(5)) is not None
    clock.advance(80)
    await index.log.append([heartbeat(n, vram=20.0 + n, seq=3) for n in range(3)])
    await apply_everything(index)
    clock.advance(11)
    await Reaper(index.upkeep, "test", every_s=0).sweep()
    await client.xtrim(index.keys.heartbeats, maxlen=0, approximate=False)
    await index.log.append([heartbeat(0, vram=30.0, seq=4)])
    await apply_everything(index)
    await recorder.run_once()

    assert await reconcile.reconcile() == 7
    assert await reconcile.reconcile() == 0
    page = await record.agents.list_agents(AgentFilter())
    statuses = {agent.agent_id: agent.status for agent in page.agents}
    online, offline = AgentStatus.ONLINE, AgentStatus.OFFLINE
    assert statuses == {agent_id(n): online if n in (0, 1, 2) else offline for n in (0, 1, 2, 3, 4, 7)}
    assert {agent.agent_id for agent in page.agents if agent.cordon} == {agent_id(3)}
    seen_since_ms = clock.now_ms() - 90_000
    recorded = await record.capacity.find(CapacityQuery(), seen_since_ms=seen_since_ms)
    assert recorded.agents == (await index.capacity.find(CapacityQuery())).agents
    assert [row.gpu_vram_available_gb for row in recorded.agents] == [30.0, 22.0, 21.0]


@pytest.mark.parametrize("dies", [False, True])
async def test_what_was_read_but_not_recorded_counts_as_lost_too(
    index: Index, record: Record, *, dies: bool
) -> None:
    client: Any = index.capacity._client
    await index.log.append([heartbeat(n, seq=1) for n in range(3)])
    await apply_everything(index)
    reader = index.record_reader()
    read = await reader.read()
    before = lost_entries()
    await client.xtrim(index.keys.heartbeats, maxlen=0, approximate=False)
    recorder = Recorder(index.record_reader() if dies else reader, record.writer)
    await index.log.append([heartbeat(9, seq=1)])

    async def nothing_pending() -> bool:
        await recorder.run_once()
        return bool((await client.xpending(index.keys.heartbeats, "record"))["pending"] == 0)

    await wait_until_async(nothing_pending)
    assert lost_entries() - before == len(read) > 3
    assert await client.xlen(index.keys.dead_letters) == 0
    await apply_everything(index)
    assert await Reconcile(index.states, record.writer).reconcile() == 4
    assert not await client.exists(index.keys.gap)


async def test_what_was_trimmed_is_counted_once(index: Index) -> None:
    client: Any = index.capacity._client
    readers = [index.record_reader() for _ in range(2)]
    before = lost_entries()
    for lost in (5, 9):
        await index.log.append([heartbeat(n) for n in range(lost - int(lost_entries() - before))])
        await client.xtrim(index.keys.heartbeats, maxlen=0, approximate=False)
        for reader in readers:
            assert await reader.read() == []
        assert lost_entries() - before == lost
        assert int(await client.hget(index.keys.gap, "entries")) == lost
