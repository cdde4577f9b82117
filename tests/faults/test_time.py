"""Clocks that are set, agents that flap, and silence of everybody at once, on a clock that the test turns."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
from prometheus_client import REGISTRY

from app.models.capacity import AgentStatus
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
        assert await offline_events(world) == 0
        # Two agents never report again, the others go on.
        for _ in range(4):
            await world.wait(29)
            await world.report(*range(2, FLEET))
            await world.ingest()
        assert await found(world) == FLEET - 2
        await world.wait(OFFLINE_AFTER_S)
        await all_report(world)
        await check(world)
        return await offline_events(world)

    assert in_world(story) == 2
    row.require_answers(sources=INDEX_ONLY)
    row.saw(f"{shift_s / 3600:+.0f} h, {first} first: searches right within 1 s, only the two silent ones offline")


def test_row_36_flapping(row: Row, in_world: InWorld[tuple[int, int]]) -> None:
    """An agent changes its status twenty times in twenty minutes."""

    async def story(world: World) -> tuple[int, int]:
        await all_report(world, agents=5)
        before = await world.search()
        for turn in range(20):
            await world.wait(30)
            await world.report(0, status=AgentStatus.ONLINE if turn % 2 else AgentStatus.BUSY)
            await world.report(*range(1, 5))
            await world.ingest()
            await world.record_round()
        after = await world.search()
        assert before is not None
        assert after is not None
        by_vram = sorted(after.agents, key=lambda one: (one.gpu_vram_available_gb, one.agent_id), reverse=True)
        assert after.agents == by_vram
        assert len(after.agents) == 5
        await check(world)
        flapping = await world.index.capacity._client.zrange(world.index.keys.flapping, 0, -1)
        assert flapping == [world.reporter(0).agent_id.encode()]
        history = await world.record.agents.history(world.reporter(0).agent_id, limit=100)
        assert history is not None
        return len(history.events), sum(event.changes for event in history.events)

    events, changes = in_world(story)
    assert changes == 21
    assert events <= 5
    row.require_answers(sources=INDEX_ONLY)
    row.saw(f"marked; {changes} changes kept as {events} events; still found, in its place")


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
