"""Silence: lookups never show a silent agent, the reaper declares it offline once, a fresh heartbeat wins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from app.index.clock import ManualClock
from app.index.epoch import Epoch
from app.index.keys import GROUP_INDEX, GROUP_RECORD, LAYOUT
from app.index.opening import Index
from app.index.placement import from_ms
from app.models.capacity import AgentStatus, CapacityQuery
from app.models.cordon import Cordon
from app.models.transition import Reason, Transition, TransitionKind
from tests.consistency import assert_index_consistent
from tests.indexing import agent_id, apply_everything, heartbeat, index_settings, opened_index
from tests.silence import OFFLINE_AFTER_S, found, reaper, report, status, transitions
from workers.reaper import Housekeeping


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_800_000_000_000)


@pytest.fixture
async def index(redis_url: str, clock: ManualClock) -> AsyncIterator[Index]:
    async with opened_index(index_settings(redis_url), clock=clock) as index:
        # Past the grace that follows the opening of an epoch.
        clock.advance(OFFLINE_AFTER_S)
        yield index


def housekeeping(index: Index) -> Housekeeping:
    return Housekeeping(index.upkeep, index.stream, "test")


async def test_without_a_reaper_a_silent_agent_is_in_no_search_and_reads_offline(
    index: Index, clock: ManualClock
) -> None:
    await report(index, 1, 2)
    clock.advance(OFFLINE_AFTER_S - 1)
    await report(index, 2)
    clock.advance(1)
    assert set(await found(index)) == {agent_id(1), agent_id(2)}
    clock.advance(0.001)
    assert await found(index) == [agent_id(2)]
    assert await status(index, 1) is AgentStatus.OFFLINE
    assert await status(index, 2) is AgentStatus.ONLINE


async def test_the_reaper_declares_a_silent_agent_offline_once(index: Index, clock: ManualClock) -> None:
    await report(index, 1)
    clock.advance(OFFLINE_AFTER_S + 1)
    declared = await asyncio.gather(*(reaper(index).sweep() for _ in range(4)))
    assert sum(declared) == 1
    assert await reaper(index).sweep() == 0
    assert await transitions(index) == [
        (agent_id(1), TransitionKind.ONLINE, Reason.HEARTBEAT),
        (agent_id(1), TransitionKind.OFFLINE, Reason.SILENT),
    ]
    client = index.capacity._client
    assert await client.zcard(index.keys.vram("desktop")) == 0
    assert await client.zcard(index.keys.vram_by_cores("desktop", "4+")) == 0
    assert await client.zcard(index.keys.vram_by_cores("desktop", "4+", "default")) == 0
    assert await client.hget(index.keys.agent(agent_id(1)), "gpu_vram_available_gb") == b"8.0"


@pytest.mark.parametrize("declared", [False, True])
async def test_an_unchanged_heartbeat_brings_a_swept_agent_back(
    index: Index, clock: ManualClock, *, declared: bool
) -> None:
    await report(index, 1)
    clock.advance(OFFLINE_AFTER_S + 1)
    if declared:
        await reaper(index).sweep()
    else:
        await index.upkeep.sweep()
    assert await found(index) == []
    await report(index, 1)
    assert await found(index) == [agent_id(1)]
    assert await status(index, 1) is AgentStatus.ONLINE
    client = index.capacity._client
    for key in (index.keys.silent, index.keys.offline):
        assert await client.zcard(key) == 0
    kinds = [kind for _, kind, _ in await transitions(index)]
    there_and_back = [TransitionKind.ONLINE, TransitionKind.OFFLINE, TransitionKind.ONLINE]
    assert kinds == (there_and_back if declared else [TransitionKind.ONLINE])


async def test_a_lagging_ingest_makes_nobody_look_dead(index: Index, clock: ManualClock) -> None:
    await report(index, 1, 2)
    clock.advance(30)
    await index.log.append([heartbeat(1)])
    clock.advance(OFFLINE_AFTER_S)
    # Both have been silent for 120 s as far as the index knows, but it knows only the first 30 of them.
    assert len(await found(index)) == 2
    assert await reaper(index).sweep() == 0
    await apply_everything(index)
    assert await found(index) == [agent_id(1)]
    assert await reaper(index).sweep() == 1


async def test_an_ingest_that_died_over_a_batch_makes_nobody_look_dead(index: Index, clock: ManualClock) -> None:
    await report(index, 1)
    clock.advance(OFFLINE_AFTER_S - 1)
    await index.log.append([heartbeat(1)])
    assert await index.index_reader().read()
    clock.advance(OFFLINE_AFTER_S - 1)
    assert await found(index) == [agent_id(1)]
    assert await reaper(index).sweep() == 0
    # Another takes the batch over.
    await apply_everything(index)
    assert await found(index) == [agent_id(1)]
    clock.advance(2)
    assert await found(index) == []


async def test_nobody_is_declared_offline_before_having_had_time_to_report(
    redis_url: str, clock: ManualClock
) -> None:
    async with opened_index(index_settings(redis_url), clock=clock) as index:
        await report(index, 1)
        clock.advance(OFFLINE_AFTER_S + 1)
        await index.upkeep.begin_rebuild("again", None)
        assert await index.upkeep.open_epoch("again")
        assert await reaper(index).sweep() == 0
        assert await found(index) == []
        clock.advance(OFFLINE_AFTER_S)
        assert await reaper(index).sweep() == 1


async def test_a_search_sweeps_what_stands_in_its_way_and_never_answers_short(
    index: Index, clock: ManualClock
) -> None:
    await report(index, *range(100, 400))
    clock.advance(OFFLINE_AFTER_S)
    await report(index, 1, 2, 3)
    clock.advance(1)
    page = await index.capacity.find(CapacityQuery(limit=3))
    assert [row.agent_id for row in page.agents] == [agent_id(3), agent_id(2), agent_id(1)]
    assert await index.capacity._client.zcard(index.keys.silent) > 0


async def test_a_goodbye_takes_effect_at_once_and_keeps_the_last_metrics(index: Index) -> None:
    await report(index, 1)
    await index.log.append([heartbeat(1, status=AgentStatus.OFFLINE, resource_metrics=None)])
    await apply_everything(index)
    assert await found(index) == []
    agent = await index.capacity.get(agent_id(1))
    assert agent is not None
    assert (agent.status, agent.gpu_vram_available_gb) == (AgentStatus.OFFLINE, 8.0)


async def test_agents_offline_for_long_leave_the_index(index: Index, clock: ManualClock) -> None:
    await report(index, 1)
    clock.advance(OFFLINE_AFTER_S + 1)
    await reaper(index).sweep()
    clock.advance(30 * 86_400)
    await housekeeping(index).tidy()
    assert await index.capacity.get(agent_id(1)) is None
    await assert_index_consistent(index)


async def test_cordoned_agents_stay_and_hold_up_no_others(index: Index, clock: ManualClock) -> None:
    everybody, cordoned = range(40), range(0, 40, 2)
    await report(index, *everybody)
    for n in cordoned:
        await index.cordons.cordon(agent_id(n), Cordon(reason="r", actor="a", since=from_ms(clock.now_ms())))
    await apply_everything(index)
    clock.advance(OFFLINE_AFTER_S + 1)
    assert await reaper(index).sweep() == len(everybody)
    clock.advance(30 * 86_400)
    await housekeeping(index).tidy()
    left = [n for n in everybody if await index.capacity.get(agent_id(n)) is not None]
    assert left == list(cordoned)
    await assert_index_consistent(index)
    await report(index, 0)
    assert await found(index) == []


async def test_housekeeping_trims_more_than_redis_does_at_once(index: Index, clock: ManualClock) -> None:
    client = index.capacity._client
    for _ in range(11):
        await index.log.append([heartbeat(1)] * 2_000)
    for group in (GROUP_INDEX, GROUP_RECORD):
        await client.xgroup_setid(index.keys.heartbeats, group, "$")
    await housekeeping(index).tidy()
    assert await client.xlen(index.keys.heartbeats) < 150


async def test_nobody_is_declared_offline_because_redis_was_away(index: Index, clock: ManualClock) -> None:
    await report(index, 1)
    client = index.capacity._client
    # Restarted with everything that it had, after ten minutes.
    await client.set(index.keys.epoch, str(Epoch(clock.now_ms(), LAYOUT, "another-run")))
    clock.advance(600)
    assert await reaper(index).sweep() == 0
    await index.upkeep.begin_rebuild("after", None)
    assert await index.upkeep.open_epoch("after")
    assert await reaper(index).sweep() == 0
    await report(index, 1)
    clock.advance(OFFLINE_AFTER_S)
    assert await reaper(index).sweep() == 0
    assert await status(index, 1) is AgentStatus.ONLINE
    assert TransitionKind.OFFLINE not in [kind for _, kind, _ in await transitions(index)]


async def test_forgetting_leaves_nothing_but_a_tombstone_and_a_later_heartbeat_registers_anew(
    index: Index, clock: ManualClock
) -> None:
    await report(index, 1)
    entry = await index.capacity.forget(agent_id(1))
    assert entry is not None
    assert await found(index) == []
    assert await index.capacity.get(agent_id(1)) is None
    assert await index.capacity.forget(agent_id(1)) is None
    client = index.capacity._client
    assert await client.zcard(index.keys.seen) == 0
    assert await client.pttl(index.keys.agent(agent_id(1))) > 0
    clock.advance(1)
    await report(index, 1)
    assert await found(index) == [agent_id(1)]
    assert await client.pttl(index.keys.agent(agent_id(1))) == -1
    assert [kind for _, kind, _ in await transitions(index)] == [
        TransitionKind.ONLINE,
        TransitionKind.FORGOTTEN,
        TransitionKind.ONLINE,
    ]


async def test_while_nobody_takes_heartbeats_in_nobody_is_declared_offline(
    index: Index, clock: ManualClock
) -> None:
    await index.upkeep.receive("api-1", gap_s=15)
    await report(index, 1)
    clock.advance(OFFLINE_AFTER_S + 1)
    assert await reaper(index).sweep() == 0
    assert await found(index) == []
    await index.upkeep.receive("api-1", gap_s=15)
    clock.advance(OFFLINE_AFTER_S)
    await index.upkeep.receive("api-1", gap_s=OFFLINE_AFTER_S)
    assert await reaper(index).sweep() == 1


async def test_after_all_receivers_were_away_there_is_a_grace(index: Index, clock: ManualClock) -> None:
    await index.upkeep.receive("api-1", gap_s=15)
    await report(index, 1)
    clock.advance(OFFLINE_AFTER_S + 60)
    assert await index.upkeep.receive("api-2", gap_s=15)
    assert await found(index) == []
    assert await reaper(index).sweep() == 0
    clock.advance(10)
    assert not await index.upkeep.receive("api-1", gap_s=15)
    clock.advance(OFFLINE_AFTER_S)
    await index.upkeep.receive("api-1", gap_s=OFFLINE_AFTER_S)
    assert await reaper(index).sweep() == 1


async def test_mass_silence_leaves_searches_at_once_and_the_status_slowly(
    index: Index, clock: ManualClock
) -> None:
    await report(index, *range(300))
    clock.advance(60)
    await report(index, *range(100))
    clock.advance(OFFLINE_AFTER_S - 59)
    assert await reaper(index).sweep() == 1
    assert len(await found(index)) == 100
    assert await index.capacity._client.zcard(index.keys.vram("desktop")) == 100
    clock.advance(1)
    assert await reaper(index).sweep() == 1


async def test_four_changes_within_ten_minutes_mark_an_agent_as_flapping(index: Index, clock: ManualClock) -> None:
    for n in range(5):
        clock.advance(60)
        state = AgentStatus.BUSY if n % 2 else AgentStatus.ONLINE
        await index.log.append([heartbeat(1, status=state)])
        await apply_everything(index)
    assert await found(index) == [agent_id(1)]
    reader = index.record_reader()
    marks = [entry.body.flapping for entry in await reader.read() if isinstance(entry.body, Transition)]
    assert marks == [False, False, False, True, True]


async def test_a_grace_lasts_until_what_came_during_it_is_applied(index: Index, clock: ManualClock) -> None:
    await report(index, 1, 2)
    # As after a rebuild from a record that is older than the silence that makes an agent offline.
    clock.advance(OFFLINE_AFTER_S + 1)
    await index.upkeep.begin_rebuild("again", None)
    assert await index.upkeep.open_epoch("again")
    assert await reaper(index).sweep() == 0
    clock.advance(OFFLINE_AFTER_S - 1)
    await index.log.append([heartbeat(1)])
    clock.advance(2)
    assert await reaper(index).sweep() == 0
    await apply_everything(index)
    assert await reaper(index).sweep() == 1
    assert await found(index) == [agent_id(1)]
