"""The search without a script gives the script's answers, or leaves the answer to the script."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from app.client import AsyncCapacityClient, CapacityClient, CapacityQuery, GpuType
from app.index import shortcut
from app.index.clock import ManualClock
from app.index.direct import DirectIndex
from app.index.keys import Keys
from app.models.identity import AgentId, StreamId
from tests.indexing import agent_id, apply_everything, index_settings, opened_index
from tests.planning import SILENT, fill, machine, numbers, sweep
from tests.servers import ValkeyServer
from tests.waiting import PATIENCE_S

KEYS = Keys()


class Asked:
    """A client that is warm, and how its server saw the last searches."""

    def __init__(self, client: CapacityClient, server: ValkeyServer) -> None:
        self.client = client
        self._server = server

    def find(self, **wanted: Any) -> list[int]:
        return numbers(self.client.find(**wanted))

    def commands(self) -> dict[str, int]:
        """How often each command was called since this was last asked."""
        with self._server.client() as plain:
            stats: Any = plain.info("commandstats")
            plain.config_resetstat()
        names = ("sort_ro", "evalsha", "multi", "exec")
        return {name: stats[f"cmdstat_{name}"]["calls"] for name in names if f"cmdstat_{name}" in stats}


@pytest.fixture
def asked(redis_url: str, valkey_server: ValkeyServer) -> Iterator[Asked]:
    """Over the fleet, without the silent one."""
    fill(redis_url)
    sweep(redis_url)
    with CapacityClient(redis_url, timeout_s=PATIENCE_S) as client:
        client.count()  # learns the epoch
        asked = Asked(client, valkey_server)
        asked.commands()
        yield asked


@pytest.mark.parametrize(
    ("wanted", "found", "commands"),
    [
        ({"min_gpu_vram_gb": 12, "min_cpu_cores": 8, "limit": 10}, [4, 3, 2], {"sort_ro": 1}),
        ({"min_gpu_vram_gb": 12, "min_cpu_cores": 8, "limit": 2}, [4, 3], {"sort_ro": 1}),
        ({"min_gpu_vram_gb": 12, "limit": 127, "pool_name": "default"}, [3, 2, 1], {"sort_ro": 1}),
        ({"min_gpu_vram_gb": 500, "limit": 1}, [], {"sort_ro": 1}),
        ({"min_gpu_vram_gb": 12, "min_cpu_cores": 12, "limit": 9}, [4, 3], {"sort_ro": 2, "multi": 1, "exec": 1}),
        ({"min_gpu_vram_gb": 12, "min_cpu_cores": 13, "limit": 9}, [4], {"sort_ro": 3, "multi": 1, "exec": 1}),
        ({"min_gpu_vram_gb": 12, "min_cpu_cores": 9, "limit": 9}, [4, 3], {"evalsha": 1}),
        ({"min_gpu_vram_gb": 12, "limit": 128}, [4, 3, 2, 1], {"evalsha": 1}),
        ({"min_gpu_vram_gb": 12}, [4, 3, 2, 1], {"evalsha": 1}),
        ({"gpu_type": "amd", "limit": 1}, [5], {"evalsha": 1}),
        ({"min_memory_gb": 64, "limit": 1}, [4], {"evalsha": 1}),
        ({"max_age_s": 60, "limit": 1}, [4], {"evalsha": 1}),
    ],
)
def test_a_common_search_needs_no_script(
    asked: Asked, wanted: dict[str, Any], found: list[int], commands: dict[str, int]
) -> None:
    assert asked.find(**wanted) == found
    assert asked.commands() == commands


def test_both_ways_give_the_same_answers(redis_url: str) -> None:
    chance = random.Random(3)
    fleet = [
        machine(
            number,
            chance.choice([0.0, 0.25, 8.0, 8.0, 8.0, 24.0, 79.9, 1e-7]),
            chance.randrange(0, 40),
            pool_name=chance.choice(["default", "a b:c"]),
        )
        for number in range(400)
    ]
    fill(redis_url, heartbeats=fleet)
    sweep(redis_url)
    with CapacityClient(redis_url, timeout_s=PATIENCE_S) as client:
        for _ in range(200):
            query = CapacityQuery(
                min_gpu_vram_gb=chance.choice([0.0, 0.25, 7.99, 8.0, 8.01, 24.0, 80.0]),
                min_cpu_cores=chance.choice([1, 2, 3, 4, 6, 7, 8, 12, 13, 14, 16, 24, 32, 40]),
                pool_name=chance.choice([None, "default", "a b:c"]),
                limit=chance.choice([1, 2, 10, 127]),
            )
            # `search` counts as well, which takes the script.
            page = client.search(query)
            found = client.find(
                query.min_gpu_vram_gb, query.min_cpu_cores, pool_name=query.pool_name, limit=query.limit
            )
            assert found == page.agents, query


def test_with_asyncio_too(asked: Asked, redis_url: str) -> None:
    async def ask() -> list[list[int]]:
        async with AsyncCapacityClient(redis_url, timeout_s=PATIENCE_S) as client:
            await client.count()
            asked.commands()
            return [numbers(await client.find(12, cores, limit=9)) for cores in (8, 12, 13)]

    assert asyncio.run(ask()) == [[4, 3, 2], [4, 3], [4]]
    assert asked.commands() == {"sort_ro": 6, "multi": 2, "exec": 2}


def test_more_is_said_as_the_script_says_it(redis_url: str) -> None:
    fill(redis_url, heartbeats=[machine(number, 8.0, 8) for number in range(5)])
    sweep(redis_url)
    index = DirectIndex(redis_url, timeout_s=PATIENCE_S)
    for limit in (1, 4, 5, 6):
        query = CapacityQuery(min_gpu_vram_gb=8.0, limit=limit)
        pages = [index.find(query), index.find(query), index.find(query, with_total=True)]
        assert {page.more for page in pages} == {limit < 5}
    index.close()


def lose(redis_url: str, agents: Sequence[AgentId], *, at: int) -> None:
    """Makes agents of the fleet look as if they were last heard of at that time (ms)."""

    async def lost() -> None:
        async with opened_index(index_settings(redis_url), epoch=False) as index:
            client = index.capacity._client
            for agent in agents:
                await client.zadd(KEYS.seen, {agent: at})
                await client.hset(KEYS.agent(agent), "seen", str(at))

    asyncio.run(lost())


@pytest.mark.parametrize("seen_ms", [1_700_000_000_000, 4_000_000_000_000])
def test_agents_that_do_not_look_alive_are_left_to_the_script(asked: Asked, redis_url: str, seen_ms: int) -> None:
    lose(redis_url, [agent_id(3)], at=seen_ms)
    assert asked.find(min_gpu_vram_gb=12, limit=2) == [4, 2]
    assert asked.find(min_gpu_vram_gb=40, limit=2) == [4]
    commands = asked.commands()
    # The second search does not reach as far down as the agent in question.
    assert (commands["sort_ro"], commands["evalsha"]) == (2, 1)


@pytest.mark.parametrize(
    "break_agent",
    [
        lambda plain, key: plain.hset(key, "document", "broken"),
        lambda plain, key: plain.hset(key, "document", '["default","x",1,1.0]'),
        lambda plain, key: plain.hdel(key, "document"),
        lambda plain, key: plain.delete(key),
    ],
)
def test_agents_that_cannot_be_read_are_left_to_the_script(
    asked: Asked, valkey_server: ValkeyServer, break_agent: Any
) -> None:
    with valkey_server.client() as plain:
        break_agent(plain, KEYS.agent(agent_id(3)))
    assert asked.find(min_gpu_vram_gb=12, limit=9) == [4, 2, 1]
    with valkey_server.client() as plain:
        plain.hdel(KEYS.agent(agent_id(2)), "seen")
    assert asked.find(min_gpu_vram_gb=12, limit=9) == [4, 2, 1]


def test_a_server_that_refuses_is_asked_by_script_from_then_on(
    asked: Asked, redis_url: str, valkey_server: ValkeyServer
) -> None:
    with valkey_server.client() as plain:
        plain.acl_setuser(
            "planner", enabled=True, passwords=["+secret"], keys=["headroom*"], commands=["+@all"], reset=True
        )
    try:
        url = f"redis://planner:secret@127.0.0.1:{valkey_server.port}/0"
        with CapacityClient(url, timeout_s=PATIENCE_S) as client:
            client.count()
            asked.commands()
            for cores in (8, 8, 12, 8):
                assert numbers(client.find(24, cores, limit=9)) == [4, 3]
            commands = asked.commands()
        assert commands["sort_ro"] == 1
        assert commands["evalsha"] == 4
    finally:
        with valkey_server.client() as plain:
            plain.acl_deluser("planner")


def test_an_agent_that_moves_between_two_sets_is_found_once(redis_url: str) -> None:
    """From the band 12-15 to the rung 16+ and back, while searches for 12 cores read both."""
    fill(redis_url, heartbeats=[machine(1, 24.0, 12)])
    sweep(redis_url)
    done = threading.Event()

    async def move_about() -> None:
        async with opened_index(index_settings(redis_url), epoch=False) as index:
            number = 0
            while not done.is_set():
                number += 1
                now_ms = await index.upkeep.now_ms()
                beat = machine(1, 24.0, 12 if number % 2 else 16)
                await index.upkeep.apply([(StreamId(now_ms, number), beat)])

    mover = threading.Thread(target=lambda: asyncio.run(move_about()))
    mover.start()
    try:
        with CapacityClient(redis_url, timeout_s=PATIENCE_S) as client:
            answers = [numbers(client.find(12, 12, limit=5)) for _ in range(500)]
    finally:
        done.set()
        mover.join()
    assert answers == [[1]] * 500


def test_a_changed_epoch_and_a_lost_setting_are_noticed(asked: Asked, valkey_server: ValkeyServer) -> None:
    query = CapacityQuery(limit=1)
    batch = shortcut.commands(KEYS, query)
    assert batch is not None
    with valkey_server.client() as plain:
        epoch = str(plain.get(KEYS.epoch))
        raw: Any = plain.execute_command(*batch[0]), plain.mget(KEYS.epoch, KEYS.offline_after), plain.time()
    found, (held, offline_after), time = raw
    replies = [[value.encode() for value in found], [held.encode(), offline_after.encode()], time]
    page = shortcut.read(query, replies, epoch=epoch, now_ms=None)
    assert page is not None
    assert numbers(page.agents) == [4]
    assert shortcut.read(query, replies, epoch="1 2 another", now_ms=None) is None
    assert shortcut.read(query, [replies[0], [held.encode(), None], time], epoch=epoch, now_ms=None) is None
    assert shortcut.read(query, [replies[0], [None, None], time], epoch=epoch, now_ms=None) is None
    assert shortcut.read(query, replies, epoch=epoch, now_ms=4_000_000_000_000) is None


def test_an_injected_clock_counts(redis_url: str) -> None:
    clock = ManualClock(1_800_000_000_000)

    async def filled() -> None:
        async with opened_index(index_settings(redis_url), clock=clock) as index:
            await index.log.append([machine(SILENT, 9.0, 9)])
            await apply_everything(index)

    asyncio.run(filled())
    index = DirectIndex(redis_url, timeout_s=PATIENCE_S, clock=clock)
    query = CapacityQuery(limit=1)
    assert [numbers(index.find(query).agents) for _ in range(2)] == [[SILENT], [SILENT]]
    clock.advance(91)
    assert index.find(query).agents == []
    index.close()


def test_a_filter_is_no_common_search() -> None:
    assert shortcut.commands(KEYS, CapacityQuery(limit=1)) is not None
    assert shortcut.commands(KEYS, CapacityQuery(limit=1, gpu_type=GpuType.AMD)) is None
