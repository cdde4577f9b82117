"""Clocks that are set, agents that flap, and silence of everybody at once, on a clock that the test turns."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
from prometheus_client import REGISTRY

from app.models.capacity import AgentStatus
from app.models.identity import AgentId
from tests.faults.conftest import Row
from tests.faults.world import OFFLINE_AFTER_S, World, opened_world, world_settings
from tests.servers import ValkeyServer

T = TypeVar("T")
InWorld = Callable[[Callable[[World], Awaitable[T]]], T]

INDEX_ONLY = frozenset({"index"})
FLEET = 30
LARGE = 120
"""More than a fleet without a brake has."""


@pytest.fixture
def in_world(valkey_server: ValkeyServer, database_url: str, row: Row) -> InWorld[object]:
    """Runs a story in a world of its own, on a real Redis and a real Postgres."""
    valkey_server.flush()

    def run(story: Callable[[World], Awaitable[T]]) -> T:
        async def told() -> T:
            async with opened_world(world_settings(valkey_server.url, database_url)) as world:
                row.watch(world.lookups)
                return await story(world)

        return asyncio.run(told())

    return run


async def found(world: World) -> int:
    page = await world.search(limit=10_000)
    assert page is not None
    assert page.source == "index"
    return len(page.agents)


async def all_report(world: World, *, agents: int = FLEET) -> None:
    await world.report(*range(agents))
    await world.ingest()
    await world.record_round()


async def check(world: World) -> None:
    await world.settle()
    assert not await world.differences()
    assert not await world.misjudged()


@pytest.mark.parametrize("shift_s", [3600.0, -3600.0])
@pytest.mark.parametrize("first", ["watch", "reaper", "lookup"])
def test_row_35_clock_is_set(row: Row, in_world: InWorld[int], shift_s: float, first: str) -> None:
    """Redis's clock is set an hour forwards or back; a watcher, a reaper or a lookup is the first to meet it."""

    async def story(world: World) -> int:
        await all_report(world)
        await world.settle()
        await clock_is_set(world, shift_s, first=first)
        return await two_fall_silent(world)

    assert in_world(story) == 2
    row.require_answers(sources=INDEX_ONLY)
    row.saw(f"{shift_s / 3600:+.0f} h, {first} first: searches right within 1 s, only the two silent ones offline")


@pytest.mark.parametrize("shift_s", [1.0, -1.0, 5.0, -5.0, 14.0, -14.0])
@pytest.mark.parametrize("first", ["watch", "reaper", "lookup"])
def test_row_35_clock_is_set_a_little(row: Row, in_world: InWorld[int], shift_s: float, first: str) -> None:
    """The same by 1, 5 and 14 s, while everybody's last heartbeat is almost as old as it may be."""

    async def story(world: World) -> int:
        await all_report(world)
        await world.settle()
        await world.wait(OFFLINE_AFTER_S - 3)
        await clock_is_set(world, shift_s, first=first)
        await all_report(world)
        return await two_fall_silent(world)

    assert in_world(story) == 2
    row.require_answers(sources=INDEX_ONLY)
    row.saw(f"{shift_s:+.0f} s, {first} first: nobody lost, only the two silent ones offline")


async def clock_is_set(world: World, shift_s: float, *, first: str) -> None:
    """Everybody is found and nobody declared offline as soon as a watcher has looked."""
    await world.jump(shift_s, noticed=first == "watch")
    if first == "reaper":
        await world.reap()
    if first == "lookup":
        await world.search(limit=10_000)
    if first != "watch":
        # The longest that it takes until a watcher looks: its pause, and as much for a slow round.
        world.advance(2 * world.watch.pause_s)
        await world.watch.look()
    assert await found(world) == FLEET
    await world.reap()
    assert await found(world) == FLEET
    await world.settle()
    assert await offline_events(world) == 0


async def two_fall_silent(world: World) -> int:
    """Two agents never report again, the others go on; returns how often anybody was declared offline."""
    for _ in range(4):
        await world.wait(29)
        await world.report(*range(2, FLEET))
        await world.ingest()
    assert await found(world) == FLEET - 2
    await world.wait(OFFLINE_AFTER_S)
    await all_report(world)
    await check(world)
    return await offline_events(world)


def test_row_36_flapping(row: Row, in_world: InWorld[int]) -> None:
    """An agent changes its status every 30 s for 14 minutes; another one every 210 s, which is four times in a
    little more than ten minutes.
    """

    async def story(world: World) -> int:
        # Its own figures put it first, and there it must stay.
        await world.report(0)
        await all_report(world, agents=5)
        since = None
        for turn in range(28):
            fast, slow = turned(turn), turned((turn + 1) // 7 + 1)
            await world.wait(30)
            await world.report(0, status=fast)
            await world.report(1, status=slow)
            await world.report(*range(2, 5))
            await world.ingest()
            await world.record_round()
            away = {number for number, status in ((0, fast), (1, slow)) if status is AgentStatus.BUSY}
            await in_order(world, {*range(5)} - away)
            if since is None and await flapping(world):
                since = turn
        # The registration is the first of the four.
        assert since == 2
        assert await flapping(world) == {world.reporter(0).agent_id}
        assert (await world.index.health.health()).flapping == 1
        await check(world)
        assert await changes_by_event(world, 0) == [1, 1, 1, 26]
        assert await changes_by_event(world, 1) == [1] * 5
        for _ in range(21):
            await world.wait(30)
            await world.report(*range(5))
            await world.ingest()
        assert (await world.index.health.health()).flapping == 0
        return since

    in_world(story)
    row.require_answers(sources=INDEX_ONLY)
    row.saw("marked from the 4th change in 10 minutes; 29 changes kept as 4 events; searches in order all along")


def turned(turn: int) -> AgentStatus:
    return AgentStatus.ONLINE if turn % 2 else AgentStatus.BUSY


async def flapping(world: World) -> set[AgentId]:
    members: Any = await world.index.capacity._client.zrange(world.index.keys.flapping, 0, -1)
    return {AgentId(member.decode()) for member in members}


async def in_order(world: World, placeable: set[int]) -> None:
    """A search finds these agents by what they said last: most VRAM first, then by descending id."""
    page = await world.search(limit=100)
    assert page is not None
    said = [(world.reporter(number).sent[-1].vram, world.reporter(number).agent_id) for number in placeable]
    assert [(one.gpu_vram_available_gb, one.agent_id) for one in page.agents] == sorted(said, reverse=True)


async def changes_by_event(world: World, number: int) -> list[int]:
    """How many changes each event of the agent stands for, the oldest first."""
    history = await world.record.agents.history(world.reporter(number).agent_id, limit=100)
    assert history is not None
    return [event.changes for event in reversed(history.events)]


def test_row_38_ingestion_away(row: Row, in_world: InWorld[int]) -> None:
    """No API takes heartbeats for five minutes; then one does."""

    async def story(world: World) -> int:
        await all_report(world, agents=LARGE)
        await world.settle()
        world.receiving = False
        await world.wait(300)
        assert await found(world) == 0
        world.receiving = True
        # The fleet comes back over most of the grace, one after the other.
        for number in range(LARGE):
            await world.wait(0.6)
            await world.report(number)
            await world.ingest()
        assert await found(world) == LARGE
        await check(world)
        return await offline_events(world)

    assert in_world(story) == 0
    row.require_answers(sources=INDEX_ONLY)
    row.saw("ingestion away for 300 s: searches empty meanwhile, nobody declared offline afterwards")


def test_row_38_most_of_the_fleet_is_silent(row: Row, in_world: InWorld[tuple[int, int]]) -> None:
    """100 of 120 agents fall silent at once, and stay so."""

    async def story(world: World) -> tuple[int, int]:
        await all_report(world, agents=LARGE)
        for _ in range(4):
            await world.wait(30)
            await world.report(*range(20))
            await world.ingest()
        assert await found(world) == 20
        await world.settle()
        soon = await offline_events(world)
        assert REGISTRY.get_sample_value("headroom_mass_silence") == 1
        for _ in range(10):
            for _ in range(15):
                await world.wait(1)
            await world.report(*range(20))
            await world.ingest()
        assert REGISTRY.get_sample_value("headroom_mass_silence") == 0
        await check(world)
        return soon, await offline_events(world)

    soon, late = in_world(story)
    assert soon < 40
    assert late == 100
    row.require_answers(sources=INDEX_ONLY)
    row.saw(f"100 of 120 left the searches at once, {soon} were declared offline by then, all 100 in the end")


async def offline_events(world: World) -> int:
    total = 0
    for number in world.reporters:
        history = await world.record.agents.history(world.reporter(number).agent_id, limit=100)
        total += sum(event.to_status == "offline" for event in history.events) if history else 0
    return total


def test_row_41_no_reaper_on_a_clock(row: Row, in_world: InWorld[None]) -> None:
    """Nobody sweeps; 200 of 230 agents stop reporting, and searches go on to the second and for a day after."""

    async def story(world: World) -> None:
        await world.report(*range(230))
        await world.settle()
        alive = {world.reporter(number).agent_id for number in range(0, 230, 8)}
        world.advance(OFFLINE_AFTER_S - 1)
        assert len(await world.found()) == 230
        await world.report(*range(0, 230, 8))
        await world.ingest()
        world.advance(0.999)
        assert len(await world.found()) == 230
        world.advance(0.002)
        await only(world, alive)
        for _ in range(24):
            world.advance(3600)
            assert not await world.found()
            await world.report(*range(0, 230, 8))
            await world.ingest()
            await only(world, alive)
        assert await offline_events(world) == 0

    in_world(story)
    row.require_answers(sources=INDEX_ONLY)
    row.saw("found until 90 s after their last heartbeat, not 1 ms longer, by no page of any size")


async def only(world: World, alive: set[AgentId]) -> None:
    for limit in (1, 7, 1_000):
        page = await world.search(limit=limit)
        assert page is not None
        assert len(page.agents) == min(limit, len(alive)), "an answer that is short"
        assert {one.agent_id for one in page.agents} <= alive
