"""The functions for people with redis-cli answer as the client does, and refuse what must not be trusted."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from redis.exceptions import ResponseError

from app.client import CapacityClient
from app.index.clock import ManualClock
from app.index.keys import LAYOUT, Keys, encode_pool
from app.index.scripts import library
from app.models.capacity import Resources
from app.models.identity import StreamId
from tests.indexing import agent_id, index_settings, opened_index
from tests.planning import GOODBYE, SILENT, fill, machine, sweep
from tests.servers import ValkeyServer, start_valkey
from tests.waiting import PATIENCE_S

ROW = re.compile(
    r"(?P<agent_id>\S+) vram_gb=(?P<vram_gb>[0-9.e+-]+) cores=(?P<cores>\d+) load_1min=(?P<load>[0-9.]+) "
    r"pool=(?P<pool>\S+) age_s=(?P<age_s>-?[0-9.]+)"
)


@pytest.fixture
def redis_cli(valkey_server: ValkeyServer, redis_url: str) -> Iterator[Any]:
    """Calls one of the functions as a person would type it, and gives what a program reads."""
    with valkey_server.client() as client:
        yield lambda name, *arguments: client.execute_command("FCALL_RO", name, 1, "headroom", *arguments)


def rows(reply: list[str]) -> list[dict[str, str]]:
    found = [ROW.fullmatch(line) for line in reply]
    assert all(found), reply
    return [match.groupdict() for match in found if match]


def test_a_row_reads_like_a_line_of_client_list(redis_cli: Any, redis_url: str) -> None:
    fill(redis_url)
    [line] = redis_cli("headroom_find", "desktop", 40, 8, 10)
    assert re.sub(r"age_s=[0-9.]+", "age_s=…", line) == (
        f"{agent_id(4)} vram_gb=80.0 cores=64 load_1min=12.5 pool=training age_s=…"
    )
    assert 0 <= float(rows([line])[0]["age_s"]) < 60


def test_the_functions_answer_as_the_client_does(redis_cli: Any, redis_url: str) -> None:
    chance = random.Random(5)
    pools = ["default", "a b:c", "ü/ß%20", 'quote"d, ["x"]', "{tag}", "~._-"]
    fleet = [
        machine(
            number,
            chance.choice([0.0, 0.5, 8.0, 24.0, 24.0, 79.9, 1e-7, 123456.75]),
            chance.randrange(0, 70),
            pool_name=chance.choice(pools),
            agent_type=chance.choice(["desktop", "desktop", "infra"]),
        )
        for number in range(200)
    ]
    fill(redis_url, heartbeats=fleet)
    sweep(redis_url)
    with CapacityClient(redis_url, timeout_s=PATIENCE_S) as client:
        for _ in range(80):
            vram = chance.choice(["0", "0.5", "8", "23.99", "24.0", "80"])
            cores, limit = chance.randrange(1, 72), chance.choice([1, 3, 100])
            agent_type = chance.choice(["desktop", "infra"])
            pool = chance.choice([None, *pools])
            expected = client.find(float(vram), cores, agent_type=agent_type, pool_name=pool, limit=limit)
            pool_argument = [] if pool is None else [pool]
            found = rows(redis_cli("headroom_find", agent_type, vram, cores, limit, *pool_argument))
            assert [
                (row["agent_id"], float(row["vram_gb"]), int(row["cores"]), float(row["load"]), row["pool"])
                for row in found
            ] == [
                (
                    row.agent_id,
                    row.gpu_vram_available_gb,
                    row.cpu_cores_available,
                    row.cpu_load_1min,
                    encode_pool(row.pool_name),
                )
                for row in expected
            ]
            count = redis_cli("headroom_count", agent_type, vram, cores, *pool_argument)
            assert count == client.count(float(vram), cores, agent_type=agent_type, pool_name=pool)


def test_an_agent_reads_like_its_hash(redis_cli: Any, redis_url: str) -> None:
    fill(redis_url)
    reply = redis_cli("headroom_agent", agent_id(4).upper())
    fields = dict(zip(reply[::2], reply[1::2], strict=True))
    assert set(Resources.__struct_fields__) <= set(fields)
    with CapacityClient(redis_url) as client:
        agent = msgspec.to_builtins(client.get(agent_id(4)))
    for name in ("agent_id", "status", *Resources.__struct_fields__):
        assert fields[name] == str(agent[name])
    assert (fields["pool_name"], fields["hostname"], fields["cordon"]) == ("training", "host-4", "")
    assert 0 <= float(fields["age_s"]) < 60


def test_silent_and_offline_agents(redis_cli: Any, redis_url: str) -> None:
    fill(redis_url)
    found = {row["agent_id"] for row in rows(redis_cli("headroom_find", "desktop", 0, 1, 100))}
    assert {agent_id(SILENT), agent_id(GOODBYE)}.isdisjoint(found)
    assert len(found) == 5
    for number in (SILENT, GOODBYE):
        reply = redis_cli("headroom_agent", agent_id(number))
        assert reply[reply.index("status") + 1] == "offline"


def test_the_limit_may_be_left_out(redis_cli: Any, redis_url: str) -> None:
    fill(redis_url, heartbeats=[machine(number, 1.0, 1) for number in range(20)])
    assert len(redis_cli("headroom_find", "desktop", 0, 1)) == 10


@pytest.mark.parametrize(
    ("name", "arguments", "code"),
    [
        ("headroom_find", [], "INVALID_QUERY"),
        ("headroom_find", ["desktop"], "INVALID_QUERY"),
        ("headroom_find", ["desktop", "12"], "INVALID_QUERY"),
        ("headroom_find", ["Desktop", "12", "8"], "INVALID_QUERY"),
        ("headroom_find", ["desktop:pool:x", "12", "8"], "INVALID_QUERY"),
        ("headroom_find", ["d" * 33, "12", "8"], "INVALID_QUERY"),
        ("headroom_find", ["desktop", "-1", "8"], "INVALID_QUERY"),
        ("headroom_find", ["desktop", "nan", "8"], "INVALID_QUERY"),
        ("headroom_find", ["desktop", "0x10", "8"], "INVALID_QUERY"),
        ("headroom_find", ["desktop", "12", "0"], "INVALID_QUERY"),
        ("headroom_find", ["desktop", "12", "1.5"], "INVALID_QUERY"),
        ("headroom_find", ["desktop", "12", "8", "0"], "INVALID_QUERY"),
        ("headroom_find", ["desktop", "12", "8", "101"], "INVALID_QUERY"),
        ("headroom_find", ["desktop", "12", "8", "ten"], "INVALID_QUERY"),
        ("headroom_find", ["desktop", "12", "8", "10", ""], "INVALID_QUERY"),
        ("headroom_count", ["desktop", "12"], "INVALID_QUERY"),
        ("headroom_count", ["desktop", "12", "8", "x" * 513], "INVALID_QUERY"),
        ("headroom_agent", [], "INVALID_AGENT_ID"),
        ("headroom_agent", ["4"], "INVALID_AGENT_ID"),
        ("headroom_agent", [agent_id(99)], "AGENT_NOT_FOUND"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    redis_cli: Any, redis_url: str, name: str, arguments: Any, code: str
) -> None:
    fill(redis_url)
    with pytest.raises(ResponseError, match=f"^{code} [A-Z]"):
        redis_cli(name, *arguments)


def test_more_cores_than_any_machine_has(redis_cli: Any, redis_url: str) -> None:
    fill(redis_url, heartbeats=[machine(1, 1.0, 65_536)])
    assert len(redis_cli("headroom_find", "desktop", 0, 65_536)) == 1
    for cores in (65_537, 2**31, "9" * 40):
        assert redis_cli("headroom_find", "desktop", 0, cores) == []
        assert redis_cli("headroom_count", "desktop", 0, cores) == 0


CALLS: tuple[tuple[str, ...], ...] = (
    ("headroom_find", "desktop", "12", "8", "10"),
    ("headroom_count", "desktop", "12", "8"),
    ("headroom_agent", agent_id(4)),
)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call[0])
@pytest.mark.parametrize("loss", ["emptied", "another layout", "nonsense", "no offline-after"])
def test_an_index_that_may_not_be_trusted_gives_no_answers(
    redis_cli: Any, redis_url: str, valkey_server: ValkeyServer, call: tuple[str, ...], loss: str
) -> None:
    fill(redis_url)
    keys = Keys()
    with valkey_server.client() as client:
        epoch = str(client.get(keys.epoch))
        if loss == "emptied":
            client.flushall()
        elif loss == "another layout":
            client.set(keys.epoch, epoch.replace(f" {LAYOUT} ", " 0 "))
        elif loss == "nonsense":
            client.set(keys.epoch, "nonsense")
        else:
            client.delete(keys.offline_after)
    if (loss, call[0]) == ("no offline-after", "headroom_count"):
        assert redis_cli(*call) == 4  # no freshness is judged in a count
        return
    with pytest.raises(ResponseError, match="INDEX_REBUILDING"):
        redis_cli(*call)


def test_a_restarted_server_gives_no_answers_until_it_was_rebuilt() -> None:
    with start_valkey(appendonly=True) as server:
        fill(server.url)
        server.restart()
        with server.client() as client:
            for call in CALLS:
                with pytest.raises(ResponseError, match="INDEX_REBUILDING"):
                    client.execute_command("FCALL_RO", call[0], 1, "headroom", *call[1:])
        fill(server.url)
        with server.client() as client:
            assert len(client.execute_command("FCALL_RO", "headroom_find", 1, "headroom", "desktop", 12, 8)) == 3


def test_another_prefix_has_no_index(redis_url: str, valkey_server: ValkeyServer) -> None:
    fill(redis_url)
    with valkey_server.client() as client, pytest.raises(ResponseError, match="INDEX_REBUILDING"):
        client.execute_command("FCALL_RO", "headroom_find", 1, "elsewhere", "desktop", 12, 8)


def test_many_silent_agents_are_said_to_be_in_the_way(redis_cli: Any, redis_url: str) -> None:
    fill(redis_url, heartbeats=[machine(1, 10.0, 8)])

    async def lost(silent: int) -> None:
        async with opened_index(index_settings(redis_url), epoch=False) as index:
            long_ago = [(StreamId(1_700_000_000_000, n), machine(1000 + n, 20.0, 8)) for n in range(silent)]
            await index.upkeep.apply(long_ago)

    asyncio.run(lost(100))
    assert [row["agent_id"] for row in rows(redis_cli("headroom_find", "desktop", 0, 8))] == [agent_id(1)]
    asyncio.run(lost(400))
    with pytest.raises(ResponseError, match=r"^UNAVAILABLE Too many silent agents"):
        redis_cli("headroom_find", "desktop", 0, 8)


def test_an_agent_that_cannot_be_read_is_skipped(
    redis_cli: Any, redis_url: str, valkey_server: ValkeyServer
) -> None:
    fill(redis_url)
    with valkey_server.client() as client:
        client.hset(Keys().agent(agent_id(3)), "document", "broken")
    found = rows(redis_cli("headroom_find", "desktop", 12, 1, 10))
    assert [row["agent_id"] for row in found] == [agent_id(number) for number in (4, 2, 1)]


def test_the_library_is_replaced_and_holds_no_state(redis_url: str, valkey_server: ValkeyServer) -> None:
    fill(redis_url)
    with valkey_server.client() as client:
        client.function_load(library(), replace=True)
        listed: Any = client.execute_command("FUNCTION", "LIST", "LIBRARYNAME", "headroom")
        flags = {function["name"]: set(function["flags"]) for function in listed[0]["functions"]}
        assert flags == {name: {"no-writes"} for name in ("headroom_find", "headroom_count", "headroom_agent")}


async def test_a_server_without_functions_is_no_reason_to_fail() -> None:
    server = await asyncio.to_thread(start_valkey, config=['rename-command FUNCTION ""'])
    with server:
        clock = ManualClock(1_800_000_000_000)
        async with opened_index(index_settings(server.url), clock=clock) as index:
            assert await index.upkeep.current_epoch() is not None
