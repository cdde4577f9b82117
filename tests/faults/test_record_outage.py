"""Ten minutes without Postgres, on a clock that the test turns."""

from __future__ import annotations

import asyncio
import time

import pytest

from app.models.transition import TransitionKind
from tests.faults.conftest import OwnPostgres, Row
from tests.faults.world import World, opened_world, world_settings
from tests.servers import ValkeyServer

REPORT_EVERY_S = 30
ROUNDS = 20


@pytest.mark.parametrize(
    "agents", [100, pytest.param(10_000, marks=[pytest.mark.heavy, pytest.mark.timeout(600)])]
)
def test_row_22_postgres_down_for_ten_minutes(
    row: Row, valkey_server: ValkeyServer, own_postgres: OwnPostgres, agents: int
) -> None:
    """Postgres is stopped (-m immediate) for ten minutes in which a fleet reports every 30 s; one agent falls
    silent halfway.
    """
    valkey_server.flush()
    postgres = own_postgres()

    async def run() -> tuple[int, float]:
        settings = world_settings(valkey_server.url, postgres.url)
        async with opened_world(settings) as world:
            await report_all(world, agents)
            await world.settle()
            row.watch(world.lookups)
            postgres.stop_immediately()
            backlog = await outage(world, agents)
            await asyncio.to_thread(postgres.start)
            started = time.monotonic()
            await world.settle()
            caught_up_s = time.monotonic() - started
            assert not await world.differences()
            assert not await world.misjudged()
            silent = await world.record.agents.history(world.reporter(agents - 1).agent_id, limit=10)
            assert silent is not None
            assert [event.to_status for event in silent.events].count(TransitionKind.OFFLINE) == 1
            return backlog, caught_up_s

    backlog, caught_up_s = asyncio.run(run())
    # And the transition of the silent one.
    assert backlog == ROUNDS * agents - ROUNDS // 2 + 1
    row.require_answers(sources=frozenset({"index"}))
    row.saw(f"{agents} agents: {backlog} entries waited, caught up in {caught_up_s:.1f} s, nothing differs")


async def outage(world: World, agents: int) -> int:
    """Returns how many entries wait for the recorder in the end."""
    for done in range(ROUNDS):
        reporting = agents if done < ROUNDS // 2 else agents - 1
        await report_all(world, reporting)
        await world.record_round()
        page = await world.search(limit=100)
        assert page is not None
        assert len(page.agents) >= min(reporting, 100)
        await world.wait(REPORT_EVERY_S)
        await world.index.stream.trim()
    client = world.index.capacity._client
    groups = {group["name"]: group for group in await client.xinfo_groups(world.index.keys.heartbeats)}
    return int(groups[b"record"]["lag"]) + int(groups[b"record"]["pending"])


async def report_all(world: World, agents: int) -> None:
    for first in range(0, agents, 1_000):
        await world.report(*range(first, min(agents, first + 1_000)))
    while await unapplied(world):
        await world.ingest()


async def unapplied(world: World) -> bool:
    client = world.index.capacity._client
    groups = await client.xinfo_groups(world.index.keys.heartbeats)
    return any(group["name"] == b"index" and (group["lag"] or group["pending"]) for group in groups)
