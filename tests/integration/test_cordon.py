"""Cordons over HTTP on real stores: no heartbeat, loss, rebuild or restart places anything on a cordoned agent."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.index.clock import ManualClock
from app.record import open_record
from app.settings import Settings
from tests.indexing import agent_id, apply_everything, heartbeat, index_settings, opened_index
from tests.logs import START_MS
from tests.serving import http_client
from tests.stack import Stack
from workers.clock_watch import ClockWatch
from workers.reaper import Reaper
from workers.rebuild import Rebuild


@pytest.fixture
def settings(redis_url: str, sqlite_record_url: str) -> Settings:
    return index_settings(redis_url, database_url=sqlite_record_url)


async def cordon(stack: Stack, target: str, *, expires_in_s: float | None = None, lift: bool = False) -> None:
    word = {"reason": "new disk", "actor": "ada", "expires_in_s": expires_in_s}
    async with http_client(stack.app_over(stack.index.capacity)) as client:
        response = await client.patch(target, json={"cordon": None if lift else word})
    assert response.status_code == 200, response.text


async def rebuild(stack: Stack) -> None:
    assert await Rebuild(stack.index.upkeep, stack.record.reader, "test").rebuild()


def one(number: int) -> str:
    return f"/api/v1/agents/{agent_id(number)}"


async def test_a_cordon_outlasts_heartbeats_losses_and_restarts(settings: Settings, tmp_path: Path) -> None:
    clock = ManualClock(START_MS)
    for opened in range(3):
        async with opened_index(settings, clock=clock, epoch=opened == 0) as index:
            record = open_record(settings)
            stack = Stack(index, record, settings, clock)
            if opened == 0:
                await stack.report(heartbeat(1, seq=1), heartbeat(2, seq=1))
                await cordon(stack, one(1))
            assert await stack.search() == [2]
            await stack.report(heartbeat(1, seq=2 + 10 * opened, vram=64.0), heartbeat(2, seq=2 + 10 * opened))
            assert await stack.search() == [2]
            await index.capacity._client.flushall()
            await rebuild(stack)
            assert await stack.search() == [2]
            await stack.report(heartbeat(1, seq=3 + 10 * opened), heartbeat(2, seq=3 + 10 * opened))
            assert await stack.search() == [2]
            details = (await stack.get(one(1))).json()
            assert (details["cordon"]["reason"], details["cordon"]["actor"]) == ("new disk", "ada")
            assert [row["cordon"] is None for row in (await stack.get("/api/v1/agents")).json()] == [False, True]
            await record.close()
    async with opened_index(settings, clock=clock, epoch=False) as index:
        record = open_record(settings)
        stack = Stack(index, record, settings, clock)
        await cordon(stack, one(1), lift=True)
        assert await stack.search() == [2, 1]
        await index.capacity._client.flushall()
        await rebuild(stack)
        assert await stack.search() == [2, 1]
        await record.close()


async def test_a_whole_pool_at_once(settings: Settings) -> None:
    clock = ManualClock(START_MS)
    async with opened_index(settings, clock=clock) as index:
        record = open_record(settings)
        stack = Stack(index, record, settings, clock)
        await stack.report(*(heartbeat(n, pool_name="a" if n % 2 else "b") for n in range(1, 41)))
        await cordon(stack, "/api/v1/agents?pool_name=a")
        assert await stack.search() == list(range(40, 0, -2))
        await index.capacity._client.flushall()
        await rebuild(stack)
        assert await stack.search() == list(range(40, 0, -2))
        await cordon(stack, "/api/v1/agents?pool_name=a", lift=True)
        assert len(await stack.search()) == 40
        await record.close()


async def test_a_whole_pool_is_cordoned_with_those_that_the_record_does_not_know_yet(settings: Settings) -> None:
    clock = ManualClock(START_MS)
    async with opened_index(settings, clock=clock) as index:
        record = open_record(settings)
        stack = Stack(index, record, settings, clock)
        await stack.report(heartbeat(1, pool_name="a"))
        await index.log.append([heartbeat(2, pool_name="a"), heartbeat(3, pool_name="b")])
        await apply_everything(index)
        await cordon(stack, "/api/v1/agents?pool_name=a")
        assert await stack.search() == [3]
        await record.close()


async def test_a_cordon_ends_by_itself(settings: Settings) -> None:
    clock = ManualClock(START_MS)
    async with opened_index(settings, clock=clock) as index:
        record = open_record(settings)
        stack = Stack(index, record, settings, clock)
        # Past the grace that follows the opening of an epoch.
        clock.advance(90)
        await stack.report(heartbeat(1))
        await cordon(stack, one(1), expires_in_s=60)
        clock.advance(59)
        await Reaper(index.upkeep, "test", every_s=1, watch=ClockWatch(index.upkeep)).sweep()
        assert await stack.search() == []
        clock.advance(2)
        await Reaper(index.upkeep, "test", every_s=1, watch=ClockWatch(index.upkeep)).sweep()
        assert await stack.search() == [1]
        await record.close()


@pytest.mark.parametrize("noted", [True, False])
async def test_a_cordon_outlasts_a_clock_that_is_set_forwards_and_back(settings: Settings, *, noted: bool) -> None:
    clock = ManualClock(START_MS)
    async with opened_index(settings, clock=clock) as index:
        record = open_record(settings)
        stack = Stack(index, record, settings, clock)
        watch = ClockWatch(index.upkeep)
        reaper = Reaper(index.upkeep, "test", every_s=1, watch=watch)

        async def passes(seconds: float) -> list[int]:
            clock.advance(seconds)
            await index.upkeep.receive("api", gap_s=1e9)
            await stack.report(heartbeat(1), heartbeat(2))
            await reaper.sweep()
            return sorted(await stack.search())

        await passes(90)
        await cordon(stack, one(1), expires_in_s=1800)
        await watch.look()
        clock.jump(3600)
        if noted:
            await watch.look()
        await reaper.sweep()
        await watch.look()
        assert await passes(1) == [2]
        assert await passes(900) == [2]
        clock.jump(-3600)
        await watch.look()
        assert await passes(800) == [2]
        assert await passes(200) == [1, 2]
        await record.close()


async def test_a_clock_that_stays_set_forwards_ends_cordons_after_an_hour(settings: Settings) -> None:
    clock = ManualClock(START_MS)
    async with opened_index(settings, clock=clock) as index:
        record = open_record(settings)
        stack = Stack(index, record, settings, clock)
        watch = ClockWatch(index.upkeep)
        reaper = Reaper(index.upkeep, "test", every_s=1, watch=watch)
        await stack.report(heartbeat(1), heartbeat(2))
        await cordon(stack, one(1), expires_in_s=3600)
        await cordon(stack, one(2), expires_in_s=36_000)
        await watch.look()
        clock.jump(86_400)
        await watch.look()
        for after_s, free in ((3599, []), (2, [1, 2])):
            clock.advance(after_s)
            await stack.report(heartbeat(1), heartbeat(2))
            await reaper.sweep()
            assert sorted(await stack.search()) == free
        await record.close()
