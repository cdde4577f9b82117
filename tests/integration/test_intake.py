"""Heartbeats are taken in for as long as the index keeps up, and a cloned agent is told so."""

from __future__ import annotations

import pytest

from app.errors import BacklogFullError
from app.index.clock import ManualClock
from app.index.opening import Index
from app.models.identity import AgentId
from app.service.intake import HeartbeatIntake
from app.service.receiving import ReceiverBeat
from tests.indexing import agent_id, apply_everything, heartbeat, index_settings, opened_index
from workers.clock_watch import ClockWatch
from workers.reaper import Reaper


def intake(index: Index, *, max_backlog: int) -> HeartbeatIntake:
    """One that has not looked at the log yet: it does so at its first call, and then every half second."""
    return HeartbeatIntake(
        index.log, interval_s=30.0, offline_after_s=90.0, target_per_s=4_000.0, max_backlog=max_backlog
    )


async def test_what_waits_and_what_is_read_but_not_applied_both_count(redis_url: str) -> None:
    async with opened_index(index_settings(redis_url, ingest_batch=2)) as index:
        await index.log.append([heartbeat(n) for n in range(5)])
        assert (await index.log.load()).unapplied == 5
        assert len(await index.index_reader().read()) == 2
        assert (await index.log.load()).unapplied == 5
        with pytest.raises(BacklogFullError) as refused:
            await intake(index, max_backlog=5).accept([heartbeat(9)])
        assert refused.value.retry_after_s is not None
        assert 15.0 <= refused.value.retry_after_s <= 30.0
        assert len((await intake(index, max_backlog=6).accept([heartbeat(9)])).stream_ids) == 1
        await apply_everything(index)
        load = await index.log.load()
        assert (load.unapplied, load.agents) == (0, 6)


async def test_the_backlog_is_capped_however_fast_it_fills(redis_url: str) -> None:
    async with opened_index(index_settings(redis_url)) as index:
        gate = HeartbeatIntake(
            index.log,
            interval_s=30.0,
            offline_after_s=90.0,
            target_per_s=4_000.0,
            max_backlog=7,
            # Between two regular looks no time passes.
            steady_s=lambda: 0.0,
        )
        for n in range(7):
            await gate.accept([heartbeat(n)])
        with pytest.raises(BacklogFullError):
            await gate.accept([heartbeat(7)])
        assert (await index.log.load()).unapplied == 7


async def test_whoever_refuses_does_not_count_as_taking_heartbeats_in(redis_url: str) -> None:
    """Who was refused is silent because of us: once there is room again, all have time to report."""
    clock = ManualClock(1_800_000_000_000)
    async with opened_index(index_settings(redis_url), clock=clock) as index:
        gate = intake(index, max_backlog=1)
        beat = ReceiverBeat(index.upkeep, "api", refused=gate.take_refused)
        reaper = Reaper(index.upkeep, "test", every_s=0, watch=ClockWatch(index.upkeep))
        await gate.accept([heartbeat(1)])
        await beat.run_once()
        for _ in range(30):
            clock.advance(5)
            with pytest.raises(BacklogFullError):
                await gate.accept([heartbeat(2)])
            await beat.run_once()
        await apply_everything(index)
        assert await reaper.sweep() == 0
        clock.advance(5)
        await beat.run_once()
        assert await reaper.sweep() == 0
        clock.advance(91)
        await index.log.append([heartbeat(2)])
        await apply_everything(index)
        await index.upkeep.receive("api", gap_s=1000)
        assert await reaper.sweep() == 1


async def test_an_agent_seen_from_two_machines_is_told_so_for_a_while(redis_url: str) -> None:
    clock = ManualClock(1_800_000_000_000)
    async with opened_index(index_settings(redis_url), clock=clock) as index:
        for seq, boot in ((1, "a"), (1, "b"), (2, "a")):
            await index.log.append([heartbeat(1, seq=seq, boot_id=boot), heartbeat(2, seq=seq, boot_id="c")])
            clock.advance(1)
        await apply_everything(index)

        async def told() -> frozenset[AgentId]:
            beats = [heartbeat(1, seq=2, boot_id="b"), heartbeat(2, seq=3, boot_id="c")]
            return (await intake(index, max_backlog=100).accept(beats)).cloned

        assert await told() == {agent_id(1)}
        clock.advance(91)
        assert await told() == frozenset()
