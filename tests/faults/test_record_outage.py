"""Ten minutes without Postgres, on a clock that the test turns."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest

from tests.faults.conftest import OwnPostgres, Row
from tests.faults.world import World, opened_world, world_settings
from tests.servers import ValkeyServer

REPORT_EVERY_S = 30
OUTAGE_S = 600


@pytest.mark.parametrize(
    "agents", [100, pytest.param(10_000, marks=[pytest.mark.heavy, pytest.mark.timeout(600)])]
)
def test_row_22_postgres_down_for_ten_minutes(
    row: Row, valkey_server: ValkeyServer, own_postgres: OwnPostgres, agents: int
) -> None:
    """Postgres is stopped (-m immediate) while a fleet reports every 30 s for ten minutes."""
    valkey_server.flush()
    postgres = own_postgres()

    async def run() -> tuple[int, float]:
        settings = world_settings(valkey_server.url, postgres.url)
        async with opened_world(settings) as world:
            await report_all(world, agents)
            await world.settle()
            postgres._end(signal.SIGQUIT, timeout_s=20)
            backlog = await outage(world, agents)
            await asyncio.to_thread(postgres.start)
            started = time.monotonic()
            await world.settle()
            caught_up_s = time.monotonic() - started
            assert not await world.differences()
            assert not await world.misjudged()
            return backlog, caught_up_s

    backlog, caught_up_s = asyncio.run(run())
    assert backlog == agents * OUTAGE_S // REPORT_EVERY_S
    row.saw(f"{agents} agents: {backlog} entries waited, caught up in {caught_up_s:.1f} s, nothing differs")


async def outage(world: World, agents: int) -> int:
    """Returns how many entries wait for the recorder in the end."""
    for _ in range(OUTAGE_S // REPORT_EVERY_S):
        await report_all(world, agents)
        await world.record_round()
        page = await world.search(limit=10_000)
        assert page is not None
        assert page.source == "index"
        assert len(page.agents) == min(agents, 10_000)
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
