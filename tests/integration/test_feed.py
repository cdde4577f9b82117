"""The change feed: everything visible is in it, and whoever lost its place starts over."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.index.clock import ManualClock
from app.index.opening import Index
from app.index.placement import from_ms
from app.models.capacity import AgentStatus, GpuType
from app.models.change import Change, ChangeKind
from app.models.cordon import Cordon
from app.models.heartbeat import Heartbeat, ResourceMetrics
from app.models.identity import StreamId
from app.telemetry import FEED_UNREADABLE
from tests.indexing import agent_id, apply_everything, heartbeat, index_settings, opened_index
from workers.clock_watch import ClockWatch
from workers.reaper import Reaper

CORDON = Cordon(reason="disk swap", actor="ops", since=from_ms(1_800_000_000_000))


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_800_000_000_000)


@pytest.fixture
async def index(redis_url: str, clock: ManualClock) -> AsyncIterator[Index]:
    async with opened_index(index_settings(redis_url), clock=clock) as index:
        clock.advance(90)
        yield index


async def everything(index: Index) -> list[Change]:
    return await index.feed().read(StreamId(0), block_s=0.01)


async def kinds(index: Index, number: int) -> list[tuple[ChangeKind, bool, AgentStatus | None]]:
    return [
        (change.kind, change.placeable, change.status)
        for change in await everything(index)
        if change.agent_id == agent_id(number)
    ]


async def test_it_tells_what_can_be_seen_and_nothing_else(index: Index, clock: ManualClock) -> None:
    for beat in (
        heartbeat(1, vram=8.0),
        heartbeat(1, vram=8.0),
        heartbeat(1, vram=9.5, pool_name="a b"),
        heartbeat(1, vram=9.5, pool_name="a b", hostname="renamed"),
        heartbeat(1, vram=9.5, pool_name="a b", status=AgentStatus.BUSY),
        heartbeat(1, vram=9.5, pool_name="a b"),
    ):
        await index.log.append([beat])
        await apply_everything(index)
    await index.cordons.cordon(agent_id(1), CORDON)
    await index.cordons.uncordon(agent_id(1))
    await apply_everything(index)
    clock.advance(91)
    await Reaper(index.upkeep, "test", every_s=0, watch=ClockWatch(index.upkeep)).sweep()
    await index.capacity.forget(agent_id(1))
    online, busy, offline = AgentStatus.ONLINE, AgentStatus.BUSY, AgentStatus.OFFLINE
    assert await kinds(index, 1) == [
        (ChangeKind.CAPACITY, True, online),
        (ChangeKind.CAPACITY, True, online),
        (ChangeKind.CAPACITY, False, busy),
        (ChangeKind.CAPACITY, True, online),
        (ChangeKind.CORDON, False, online),
        (ChangeKind.UNCORDON, True, online),
        (ChangeKind.CAPACITY, False, online),
        (ChangeKind.STATUS, False, offline),
        (ChangeKind.FORGOTTEN, False, offline),
    ]
    changes = await everything(index)
    assert changes[0].kind is ChangeKind.RESET
    second = [change for change in changes if change.agent_id is not None][1]
    assert (second.gpu_vram_available_gb, second.cpu_cores_available, second.pool_name) == (9.5, 4, "a b")
    assert [change.version for change in changes] == sorted({change.version for change in changes})


async def test_a_reader_goes_on_where_it_was(index: Index) -> None:
    feed = index.feed()
    await index.log.append([heartbeat(1)])
    await apply_everything(index)
    read = await feed.read(StreamId(0), block_s=0.01)
    assert await feed.newest() == read[-1].version
    assert await feed.read(read[-1].version, block_s=0.01) == []
    await index.log.append([heartbeat(2)])
    await apply_everything(index)
    assert [change.agent_id for change in await feed.read(read[-1].version, block_s=0.01)] == [agent_id(2)]


async def test_a_reader_whose_place_was_trimmed_starts_over(index: Index) -> None:
    feed = index.feed()
    client: Any = index.capacity._client
    await index.log.append([heartbeat(n) for n in range(5)])
    await apply_everything(index)
    first, second, *_ = await feed.read(StreamId(0), block_s=0.01)
    await client.xtrim(index.keys.events, maxlen=2, approximate=False)
    for place in (first.version, second.version):
        changes = await feed.read(place, block_s=0.01)
        assert [change.kind for change in changes] == [ChangeKind.RESET, ChangeKind.CAPACITY, ChangeKind.CAPACITY]


@pytest.mark.parametrize("shift_s", [1, -3600])
async def test_a_reader_is_told_when_the_feed_was_lost(index: Index, clock: ManualClock, shift_s: int) -> None:
    feed = index.feed()
    await index.log.append([heartbeat(1)])
    await apply_everything(index)
    place = await feed.newest()
    await index.capacity._client.flushall()
    clock.jump(shift_s)
    (lost,) = await feed.read(place, block_s=0.01)
    assert lost.kind is ChangeKind.RESET
    assert await feed.read(lost.version, block_s=0.01) == []
    await index.upkeep.begin_rebuild("again", None)
    await index.log.append([heartbeat(2)])
    await apply_everything(index)
    for after in (place, lost.version):
        changes = await feed.read(after, block_s=0.01)
        assert [(change.kind, change.agent_id) for change in changes] == [
            (ChangeKind.RESET, None),
            (ChangeKind.CAPACITY, agent_id(2)),
        ]


def with_memory(number: int, gb: float, **fields: Any) -> Heartbeat:
    metrics = ResourceMetrics(gpu_vram_available_gb=8.0, cpu_cores_available=4, memory_available_gb=gb)
    return heartbeat(number, resource_metrics=metrics, **fields)


async def test_it_tells_of_memory_that_grows_past_what_somebody_waits_for(
    index: Index, clock: ManualClock
) -> None:
    feed = index.feed()

    async def told(*heartbeats: Heartbeat) -> int:
        place = await feed.newest()
        for beat in heartbeats:
            await index.log.append([beat])
            await apply_everything(index)
        return len(await feed.read(place, block_s=0.01))

    assert await told(with_memory(1, 4.0), with_memory(2, 4.0, status=AgentStatus.BUSY)) == 2
    assert await told(with_memory(1, 64.0), with_memory(1, 4.0)) == 0
    await feed.want_memory([16.0, 32.5])
    clock.advance(20)
    assert await told(with_memory(1, 15.9), with_memory(2, 64.0, status=AgentStatus.BUSY)) == 0
    assert await told(with_memory(1, 16.0)) == 1
    assert await told(with_memory(1, 20.0), with_memory(1, 12.0)) == 0
    assert await told(with_memory(1, 64.0), with_memory(1, 65.0)) == 1
    clock.advance(30)
    assert await told(with_memory(1, 4.0), with_memory(1, 64.0)) == 0


async def test_it_tells_of_another_kind_of_gpu(index: Index) -> None:
    for number, gpu_type in enumerate((GpuType.NVIDIA, GpuType.AMD, GpuType.AMD)):
        metrics = ResourceMetrics(
            gpu_vram_available_gb=8.0, cpu_cores_available=4, gpu_type=gpu_type, cpu_percent=float(number)
        )
        await index.log.append([heartbeat(1, resource_metrics=metrics)])
        await apply_everything(index)
    assert [kind for kind, _, _ in await kinds(index, 1)] == [ChangeKind.CAPACITY] * 2


async def test_what_cannot_be_read_makes_everybody_start_over_and_stops_nobody(index: Index) -> None:
    feed = index.feed()
    client: Any = index.capacity._client
    await index.log.append([heartbeat(1)])
    await apply_everything(index)
    place = await feed.newest()
    before = FEED_UNREADABLE._value.get()
    known = {"agent_id": agent_id(7), "agent_type": "desktop", "pool": "a", "figures": "4.0 2", "status": "online"}
    for fields in (
        {"kind": "of a later version"},
        {"kind": "capacity", "agent_id": agent_id(7)},
        {"kind": "capacity", **known, "figures": "much more"},
        {"kind": "capacity", **known, "status": b"\xff"},
        {"kind": "of a later version", **known},
    ):
        await client.xadd(index.keys.events, fields)
    changes = await feed.read(place, block_s=0.01)
    assert [change.kind for change in changes] == [ChangeKind.RESET] * 4 + [ChangeKind.CAPACITY]
    assert (changes[-1].agent_id, changes[-1].gpu_vram_available_gb) == (agent_id(7), 4.0)
    assert FEED_UNREADABLE._value.get() - before == 4
    assert await feed.read(changes[-1].version, block_s=0.01) == []


async def test_a_cordon_survives_heartbeats_and_ends_by_itself(index: Index, clock: ManualClock) -> None:
    await index.log.append([heartbeat(1)])
    await apply_everything(index)
    until = from_ms(clock.now_ms() + 60_000)
    assert await index.cordons.cordon(agent_id(1), Cordon(reason="r", actor="a", since=until, expires_at=until))
    await index.log.append([heartbeat(1, vram=20.0)])
    await apply_everything(index)
    reaper = Reaper(index.upkeep, "test", every_s=0, watch=ClockWatch(index.upkeep))
    await reaper.sweep()
    assert (await kinds(index, 1))[-1] == (ChangeKind.CAPACITY, False, AgentStatus.ONLINE)
    clock.advance(61)
    await reaper.sweep()
    assert (await kinds(index, 1))[-1] == (ChangeKind.UNCORDON, True, AgentStatus.ONLINE)
    assert await index.cordons.uncordon(agent_id(1)) is None
    assert await index.cordons.cordon(agent_id(9), CORDON) is None
