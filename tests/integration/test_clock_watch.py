"""A clock that is set: nobody is taken out for it, and nobody stays alive by it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from unittest.mock import AsyncMock

import pytest

from app.errors import IndexUnavailableError
from app.index.clock import ManualClock
from app.index.opening import Index
from app.models.capacity import AgentStatus
from app.models.identity import StreamId
from app.models.transition import TransitionKind
from app.record import open_record
from tests.consistency import assert_index_consistent
from tests.indexing import agent_id, apply_everything, heartbeat, index_settings, opened_index
from tests.silence import OFFLINE_AFTER_S, found, reaper, report, status, transitions
from tests.waiting import PATIENCE_S
from workers.clock_watch import ClockWatch
from workers.process import _loops


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_800_000_000_000)


@pytest.fixture
async def index(redis_url: str, clock: ManualClock) -> AsyncIterator[Index]:
    async with opened_index(index_settings(redis_url), clock=clock) as index:
        # Past the grace that follows the opening of an epoch.
        clock.advance(OFFLINE_AFTER_S)
        yield index


async def test_a_clock_set_forwards_takes_nobody_out(index: Index, clock: ManualClock) -> None:
    watch = ClockWatch(index.upkeep)
    await watch.look()
    await report(index, 1, 2)
    clock.jump(3600)
    await watch.look()
    assert len(await found(index)) == 2
    clock.advance(OFFLINE_AFTER_S - 1)
    await report(index, 2)
    assert await reaper(index).sweep() == 0
    assert len(await found(index)) == 2
    clock.advance(2)
    assert await found(index) == [agent_id(2)]
    assert await reaper(index).sweep() == 1


async def test_a_server_that_stood_still_is_no_clock_that_was_set(
    index: Index, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = ClockWatch(index.upkeep)
    await watch.look()

    async def answer_late() -> int:
        said = clock.now_ms()
        clock.advance(5)
        return said

    with monkeypatch.context() as slow:
        slow.setattr(index.upkeep, "now_ms", answer_late)
        await watch.look()
    await watch.look()
    assert not await index.capacity._client.exists(index.keys.clock)


async def test_a_clock_set_back_keeps_nobody_alive_for_an_hour(index: Index, clock: ManualClock) -> None:
    watches = [ClockWatch(index.upkeep) for _ in range(3)]
    for watch in watches:
        await watch.look()
    await report(index, 1, 2)
    clock.jump(-3600)
    for watch in watches:
        await watch.look()
    assert len(await found(index)) == 2
    clock.advance(OFFLINE_AFTER_S - 1)
    await report(index, 2)
    assert await reaper(index).sweep() == 0
    clock.advance(2)
    assert await found(index) == [agent_id(2)]
    assert await reaper(index).sweep() == 1
    assert await status(index, 1) is AgentStatus.OFFLINE
    assert await index.capacity._client.hget(index.keys.clock, "shift_ms") == b"-3600000"


async def test_ingest_that_lags_takes_nobody_out_when_ids_that_a_rebuild_raised_are_caught_up_with(
    index: Index, clock: ManualClock
) -> None:
    """Redis lost its data, and the note of the clock that was set, while ids ran ahead."""
    await index.capacity._client.flushall()
    greatest = StreamId(clock.now_ms() + 300_000)
    await index.upkeep.begin_rebuild("again", greatest)
    assert await index.upkeep.open_epoch("again")
    clock.advance(OFFLINE_AFTER_S + 90)
    await report(index, 1)
    while clock.now_ms() <= greatest.ms:
        await index.log.append([heartbeat(1)])
        assert len(await found(index)) == 1
        assert await reaper(index).sweep() == 0
        clock.advance(40)
    await apply_everything(index)
    assert len(await found(index)) == 1
    clock.advance(OFFLINE_AFTER_S + 1)
    assert await found(index) == []


@pytest.mark.parametrize("back_s", [120, 3600])
async def test_without_a_reaper_nobody_comes_back_when_the_time_before_the_clock_was_set_back_comes_again(
    index: Index, clock: ManualClock, back_s: float
) -> None:
    watch = ClockWatch(index.upkeep)
    await watch.look()
    await report(index, 1, 2)
    clock.jump(-back_s)
    await watch.look()
    assert len(await found(index)) == 2
    clock.advance(back_s + OFFLINE_AFTER_S / 2)
    await report(index, 2)
    assert await found(index) == [agent_id(2)]


async def test_there_and_back_within_the_grace_changes_nothing(index: Index, clock: ManualClock) -> None:
    watch = ClockWatch(index.upkeep)
    await watch.look()
    await report(index, 1)
    for shift in (3600, 3600, -7200):
        clock.jump(shift)
        await watch.look()
        assert await found(index) == [agent_id(1)]
    clock.advance(OFFLINE_AFTER_S + 1)
    assert await found(index) == []


@pytest.mark.parametrize("shift", [3600, 120, -120, -3600])
async def test_who_was_taken_out_before_a_jump_was_noticed_is_put_back(
    index: Index, clock: ManualClock, shift: float
) -> None:
    watch = ClockWatch(index.upkeep)
    await watch.look()
    await report(index, 1)
    clock.advance(OFFLINE_AFTER_S + 1)
    assert await reaper(index).sweep() == 1
    await report(index, 2)
    clock.advance(OFFLINE_AFTER_S - 5)
    await report(index, *range(3, 30))
    await index.upkeep.receive("api", gap_s=15)
    await watch.look()
    clock.jump(shift)
    assert await reaper(index).sweep() == 0
    assert await found(index) == []
    assert await index.capacity._client.zcard(index.keys.silent) == 28
    await watch.look()
    assert sorted(await found(index)) == [agent_id(n) for n in range(2, 30)]
    await assert_index_consistent(index)
    assert TransitionKind.OFFLINE not in [kind for who, kind, _ in await transitions(index) if who != agent_id(1)]


@pytest.mark.parametrize("shift", [3600, -120, -3600])
async def test_a_jump_while_ingest_lags_takes_nobody_out(index: Index, clock: ManualClock, shift: float) -> None:
    watch = ClockWatch(index.upkeep)
    await watch.look()
    await report(index, 1, 2)
    clock.jump(shift)
    await watch.look()
    for _ in range(5):
        clock.advance(40)
        await index.log.append([heartbeat(1), heartbeat(2)])
        assert len(await found(index)) == 2
        assert await reaper(index).sweep() == 0
    await apply_everything(index)
    assert len(await found(index)) == 2
    clock.advance(OFFLINE_AFTER_S + 1)
    assert await found(index) == []


@pytest.mark.parametrize("back_s", [0.4, 1, 5, 14])
async def test_a_small_step_back_takes_nobody_out(index: Index, clock: ManualClock, back_s: float) -> None:
    """Time services step a clock by as little as this; nobody notices, or not at once."""
    await index.upkeep.receive("api", gap_s=15)
    await report(index, 1, 2)
    clock.jump(-back_s)
    assert len(await found(index)) == 2
    assert await status(index, 1) is AgentStatus.ONLINE
    assert await reaper(index).sweep() == 0
    assert await index.capacity._client.zcard(index.keys.silent) == 0
    clock.advance(back_s + OFFLINE_AFTER_S + 1)
    assert await found(index) == []


async def test_a_jump_that_could_not_be_noted_is_noticed_again(
    index: Index, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TIME is answered by a server that takes no script."""
    watch = ClockWatch(index.upkeep)
    await watch.look()
    await report(index, 1)
    await index.upkeep.receive("api", gap_s=15)
    clock.jump(3600)
    with monkeypatch.context() as refusing:
        refusing.setattr(index.upkeep, "note_jump", AsyncMock(side_effect=IndexUnavailableError))
        with pytest.raises(IndexUnavailableError):
            await watch.look()
    assert await reaper(index).sweep() == 0
    with monkeypatch.context() as refusing:
        refusing.setattr(index.upkeep, "readmit", AsyncMock(side_effect=IndexUnavailableError))
        with pytest.raises(IndexUnavailableError):
            await watch.look()
    await watch.look()
    assert await found(index) == [agent_id(1)]
    assert await index.capacity._client.zcard(index.keys.silent) == 0


async def test_who_was_taken_out_is_put_back_though_the_one_that_noted_the_jump_died(
    index: Index, clock: ManualClock
) -> None:
    dies, lives = ClockWatch(index.upkeep), ClockWatch(index.upkeep)
    await dies.look()
    await report(index, 1)
    clock.advance(60)
    await report(index, *range(2, 30))
    await index.upkeep.receive("api", gap_s=15)
    clock.jump(3600)
    assert await reaper(index).sweep() == 0
    assert await index.upkeep.note_jump(3_600_000)
    assert await index.upkeep.readmit() > 0
    clock.advance(40)
    await lives.look()
    # The first has been silent for too long by now.
    assert sorted(await found(index)) == [agent_id(n) for n in range(2, 30)]
    await assert_index_consistent(index)
    assert await index.upkeep.readmit() == 0


async def test_agents_left_in_the_future_of_a_clock_set_back_once_more_are_dated_once(
    index: Index, clock: ManualClock
) -> None:
    """Whoever noted the first jump died over it, and nobody watched the second."""
    await report(index, *range(1, 30))
    clock.jump(-3600)
    assert await index.upkeep.note_jump(-3_600_000)
    clock.jump(-600)
    async with asyncio.timeout(PATIENCE_S):
        await ClockWatch(index.upkeep).look()
    client = index.capacity._client
    assert await client.zcount(index.keys.seen, f"({clock.now_ms()}", "+inf") == 0
    assert int(await client.hget(index.keys.agent(agent_id(1)), "seen") or 0) == clock.now_ms()
    assert await index.upkeep.readmit() == 0


async def test_two_looks_of_one_watch_note_a_jump_once(
    index: Index, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reaper and the loop of its process share a watch."""
    watch = ClockWatch(index.upkeep)
    await watch.look()
    clock.jump(60)
    note = AsyncMock(wraps=index.upkeep.note_jump)
    monkeypatch.setattr(index.upkeep, "note_jump", note)
    await asyncio.gather(watch.look(), watch.look())
    note.assert_awaited_once_with(60_000)


async def test_a_reaper_late_in_its_round_notes_no_jump_again_that_its_process_has_noted(
    redis_url: str, index: Index, clock: ManualClock
) -> None:
    settings = index_settings(redis_url, database_url="sqlite+aiosqlite://")
    record = open_record(settings)
    loops = {loop.name: loop for loop in _loops("reaper", settings, index, record)}
    watch, reaper = loops["clock-watch"], loops["reaper"]
    await watch.run_once()
    await reaper.run_once()
    clock.jump(60)
    await watch.run_once()
    clock.advance(10)
    await reaper.run_once()
    assert await index.capacity._client.hget(index.keys.clock, "shift_ms") == b"60000"
    await record.close()


async def test_who_was_silent_before_a_jump_stays_out(index: Index, clock: ManualClock) -> None:
    watch = ClockWatch(index.upkeep)
    await report(index, 1)
    clock.advance(OFFLINE_AFTER_S + 1)
    await index.upkeep.receive("api", gap_s=15)
    await index.upkeep.sweep()
    await watch.look()
    for shift in (3600, -3600, -3600):
        clock.jump(shift)
        await watch.look()
        assert await found(index) == []
        assert await index.capacity._client.zcard(index.keys.silent) == 1


async def test_who_was_left_in_the_future_is_not_put_back_when_the_clock_is_set_right(
    index: Index, clock: ManualClock
) -> None:
    watch = ClockWatch(index.upkeep)
    await index.upkeep.receive("api", gap_s=15)
    await report(index, 1, 2)
    await watch.look()
    clock.jump(-3600)
    await watch.look()
    clock.advance(OFFLINE_AFTER_S - 1)
    await report(index, 2)
    clock.advance(2)
    # Nobody takes heartbeats in: taken out and not declared offline.
    assert await reaper(index).sweep() == 0
    assert await found(index) == [agent_id(2)]
    clock.jump(3600)
    await watch.look()
    assert await found(index) == [agent_id(2)]
    assert await index.capacity._client.zcard(index.keys.silent) == 1


async def test_a_receiver_of_the_future_does_not_count(index: Index, clock: ManualClock) -> None:
    await index.upkeep.receive("dead", gap_s=15)
    clock.jump(-3600)
    assert await index.upkeep.receive("api", gap_s=15)
    assert await index.capacity._client.zrange(index.keys.receivers, 0, -1) == [b"api"]
