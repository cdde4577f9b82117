"""When entries were trimmed before they were recorded, the record's current state becomes exact all the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import pytest
from prometheus_client import REGISTRY

from app.index.clock import ManualClock
from app.index.opening import Index
from app.index.placement import from_ms
from app.models.agent import AgentFilter
from app.models.capacity import AgentStatus, CapacityQuery, Resources
from app.models.cordon import Cordon
from app.models.heartbeat import Gpu
from app.models.order import Boot
from app.record import Record, migrate, open_record
from tests.indexing import agent_id, apply_everything, heartbeat, index_settings, opened_index
from tests.servers import wait_until_async
from workers.clock_watch import ClockWatch
from workers.reaper import Reaper
from workers.recorder import Reconcile, Recorder

START_MS: Final = 1_800_000_000_000


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START_MS)


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
    await Reaper(index.upkeep, "test", every_s=0, watch=ClockWatch(index.upkeep)).sweep()
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


async def lose_the_log(index: Index) -> None:
    """The stream is trimmed before anything new in it was recorded."""
    client: Any = index.capacity._client
    await apply_everything(index)
    await client.xtrim(index.keys.heartbeats, maxlen=0, approximate=False)
    assert await index.record_reader().read() == []


async def test_a_gap_leaves_gpus_and_boots_as_they_were(index: Index, record: Record, clock: ManualClock) -> None:
    gpus = (Gpu(index=0, uuid="GPU-0", name="a", vram_total_gb=24.0, vram_available_gb=8.0),)
    recorder = Recorder(index.record_reader(), record.writer)
    await index.log.append([heartbeat(n, seq=10, boot_id="first", gpus=gpus) for n in (1, 2)])
    await apply_everything(index)
    await recorder.run_once()
    for boot_id in ("first", "second", "third"):
        clock.advance(5)
        await index.log.append([heartbeat(1, seq=12, boot_id=boot_id, gpus=gpus)])
    await index.log.append([heartbeat(2, vram=3.0)])
    await lose_the_log(index)
    await Reconcile(index.states, record.writer).reconcile()

    states = {state.agent.agent_id: state async for page in record.reader.states(page_size=10) for state in page}
    assert states[agent_id(1)].agent.gpus == gpus
    assert states[agent_id(1)].order.holder == Boot("third", 12)
    assert states[agent_id(1)].order.retired == (Boot("second", 12), Boot("first", 12))
    # One that named its boot no more was heard of all the same.
    assert Resources.of(states[agent_id(2)].agent.resource_metrics) == Resources.of(heartbeat(2, vram=3.0).metrics)
    assert states[agent_id(2)].order.holder == Boot("first", 10)


async def events(record: Record, number: int) -> list[tuple[str, str, float]]:
    """What the record tells of an agent, oldest first: to which status, why, and when, in s since the start."""
    history = await record.agents.history(agent_id(number), limit=50)
    assert history is not None
    return [
        (event.to_status.value, event.reason.value, event.at.timestamp() - START_MS / 1000)
        for event in reversed(history.events)
    ]


async def test_a_change_in_a_gap_is_dated_when_it_happened(
    index: Index, record: Record, clock: ManualClock
) -> None:
    """Agent 1 falls silent in the gap, 2 says goodbye in it, 3 fell silent before it, 4 goes and comes back."""
    recorder = Recorder(index.record_reader(), record.writer)
    reaper = Reaper(index.upkeep, "test", every_s=0, watch=ClockWatch(index.upkeep))
    await index.upkeep.receive("api", gap_s=15)
    await index.log.append([heartbeat(n, seq=1) for n in (1, 2, 3, 4)])
    await apply_everything(index)
    clock.advance(60)
    await index.upkeep.receive("api", gap_s=1000)
    await index.log.append([heartbeat(n, seq=2) for n in (1, 2, 4)])
    await apply_everything(index)
    clock.advance(40)
    await index.upkeep.receive("api", gap_s=1000)
    assert await reaper.sweep() == 1
    await apply_everything(index)
    await recorder.run_once()
    before = await events(record, 3)
    assert before == [("online", "heartbeat", 90), ("offline", "silent", 190)]

    clock.advance(5)
    await index.log.append([heartbeat(4, seq=3, status=AgentStatus.OFFLINE)])
    await index.log.append([heartbeat(2, seq=3, status=AgentStatus.OFFLINE, resource_metrics=None)])
    await apply_everything(index)
    clock.advance(50)
    await index.log.append([heartbeat(4, seq=4)])
    await apply_everything(index)
    await index.upkeep.receive("api", gap_s=1000)
    assert await reaper.sweep() == 1
    clock.advance(30)
    await index.log.append([heartbeat(4, seq=5)])
    await lose_the_log(index)
    await Reconcile(index.states, record.writer).reconcile()

    assert await events(record, 1) == [("online", "heartbeat", 90), ("offline", "silent", 245)]
    assert await events(record, 2) == [("online", "heartbeat", 90), ("offline", "heartbeat", 195)]
    assert await events(record, 3) == before
    # That it was away is lost; that it is back is no news then.
    assert await events(record, 4) == [("online", "heartbeat", 90)]
    page = await record.agents.list_agents(AgentFilter())
    assert [agent.status.value for agent in page.agents] == ["offline", "offline", "offline", "online"]
    found = await record.agents.agent(agent_id(2))
    assert found is not None
    assert Resources.of(found.resource_metrics) == Resources.of(heartbeat(2).metrics)


async def test_a_change_in_a_gap_keeps_its_place_though_ids_run_ahead(
    index: Index, record: Record, clock: ManualClock
) -> None:
    recorder = Recorder(index.record_reader(), record.writer)
    await index.log.append([heartbeat(1, seq=1)])
    await apply_everything(index)
    clock.jump(-3600)
    clock.advance(10)
    await index.log.append([heartbeat(1, seq=2, status=AgentStatus.BUSY)])
    await apply_everything(index)
    await recorder.run_once()
    await recorder.run_once()
    clock.advance(10)
    await index.log.append([heartbeat(1, seq=3)])
    await apply_everything(index)
    cordon = Cordon(reason="r", actor="a", since=from_ms(clock.now_ms()))
    await index.cordons.cordon(agent_id(1), cordon)
    await lose_the_log(index)
    await Reconcile(index.states, record.writer).reconcile()
    clock.advance(10)
    await index.log.append([heartbeat(1, seq=4, status=AgentStatus.BUSY)])
    await apply_everything(index)
    await recorder.run_once()
    await recorder.run_once()
    assert [status for status, _, _ in await events(record, 1)] == ["online", "busy", "online", "cordoned", "busy"]
    assert (await record.agents.list_agents(AgentFilter())).agents[0].status is AgentStatus.BUSY


async def test_what_a_rebuild_keeps_below_the_recorded_ids_is_taken_from_the_index(
    index: Index, record: Record, clock: ManualClock
) -> None:
    """Redis lost everything after its clock had been set back: the record refuses such an entry for its id."""
    recorder = Recorder(index.record_reader(), record.writer)
    await index.log.append([heartbeat(1, vram=3.0, boot_id="a", seq=1)])
    await recorder.run_once()
    await index.capacity._client.flushall()
    clock.jump(-3600)
    await index.log.append([heartbeat(1, vram=5.0, boot_id="a", seq=2)])
    await index.upkeep.begin_rebuild("again", None)
    await apply_everything(index)
    await index.upkeep.begin_rebuild("again", await record.reader.greatest_position())
    async for page in record.reader.states(page_size=10):
        await index.upkeep.restore(page)
    assert await index.upkeep.open_epoch("again")
    await recorder.run_once()
    assert await Reconcile(index.states, record.writer).reconcile() == 1
    assert await index.states.gap() is None
    (state,) = await record.reader.some([agent_id(1)])
    assert state.order.holder == Boot("a", 2)
    assert Resources.of(state.agent.resource_metrics).gpu_vram_available_gb == 5.0
    clock.advance(30)
    await index.log.append([heartbeat(1, vram=4.0, boot_id="a", seq=3)])
    await recorder.run_once()
    (state,) = await record.reader.some([agent_id(1)])
    assert state.order.holder == Boot("a", 3)
