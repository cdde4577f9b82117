"""What a planner's client does when servers are away, restarted, emptied, slow, or strict."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.client import (
    AsyncCapacityClient,
    CapacityClient,
    CapacityUnknownError,
    HeadroomError,
    IndexRebuildingError,
    IndexUnavailableError,
    UnavailableError,
)
from app.client.route import FALLBACK_FOR_S, Route
from app.index.keys import Keys
from app.models.capacity import CapacityQuery
from app.models.identity import StreamId
from tests.faults.proxy import Proxy
from tests.indexing import agent_id, index_settings, opened_index
from tests.planning import KINDS, SILENT, api, asker, fill, fill_record, machine, numbers
from tests.servers import ValkeyServer, free_port, start_valkey
from tests.waiting import PATIENCE_S

ROOT = Path(__file__).parents[2]


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    """One of the test's own, that keeps its data through a restart."""
    with start_valkey(appendonly=True) as server:
        fill(server.url)
        yield server


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def open_epoch(redis_url: str) -> None:
    async def opened() -> None:
        async with opened_index(index_settings(redis_url)):
            pass

    asyncio.run(opened())


# --- from one way to the other ---


def test_while_redis_is_away_the_api_answers_from_the_record(
    kind: str, valkey: ValkeyServer, sqlite_record_url: str
) -> None:
    fill_record(sqlite_record_url)
    with api(valkey.url, sqlite_record_url) as api_url:
        ask = asker(kind, valkey.url, fallback=api_url, timeout_s=PATIENCE_S)
        query = CapacityQuery(min_gpu_vram_gb=12.0)
        assert ask(lambda client: client.search(query)).source == "index"
        valkey.kill()
        page = ask(lambda client: client.search(query))
        assert numbers(page.agents) == [4, 3, 2, 1]
        assert page.source == "record"
        assert page.as_of is not None
        assert ask(lambda client: client.count(12, 8)) == 3
        assert ask(lambda client: client.get(agent_id(3))).gpu_vram_available_gb == 24.0


def test_an_emptied_redis_gives_no_empty_answers(kind: str, valkey: ValkeyServer, sqlite_record_url: str) -> None:
    fill_record(sqlite_record_url)
    with api(valkey.url, sqlite_record_url) as api_url:
        alone = asker(kind, valkey.url)
        assert numbers(alone(lambda client: client.find(40))) == [4]
        valkey.flush()
        with pytest.raises(IndexRebuildingError):
            alone(lambda client: client.find(40))
        with pytest.raises(IndexRebuildingError):
            alone(lambda client: client.count(40))
        with pytest.raises(IndexRebuildingError):
            alone(lambda client: client.get(agent_id(4)))
        page = asker(kind, valkey.url, fallback=api_url, timeout_s=PATIENCE_S)(
            lambda client: client.search(CapacityQuery(min_gpu_vram_gb=40.0))
        )
        assert (numbers(page.agents), page.source) == ([4], "record")


def test_while_the_api_is_away_the_index_answers(kind: str, valkey: ValkeyServer) -> None:
    ask = asker(kind, f"http://127.0.0.1:{free_port()}", fallback=valkey.url)
    assert numbers(ask(lambda client: client.find(40))) == [4]


def test_an_api_that_stops_between_two_calls(valkey: ValkeyServer, sqlite_record_url: str) -> None:
    with api(valkey.url, sqlite_record_url) as api_url:
        client = CapacityClient(api_url, fallback=valkey.url, timeout_s=PATIENCE_S)
        assert numbers(client.find(40)) == [4]
    with client:
        assert numbers(client.find(40)) == [4]
        assert client.count(1, 1) == 6


def test_both_ways_away_says_why(kind: str, sqlite_record_url: str) -> None:
    nobody = f"redis://127.0.0.1:{free_port()}"
    with pytest.raises(UnavailableError) as away:
        asker(kind, nobody, fallback=f"http://127.0.0.1:{free_port()}")(lambda client: client.find())
    assert away.value.code == "unavailable"
    assert isinstance(away.value.__cause__, IndexUnavailableError)
    with api(nobody, sqlite_record_url) as api_url, pytest.raises(CapacityUnknownError) as unknown:
        asker(kind, nobody, fallback=api_url, timeout_s=PATIENCE_S)(lambda client: client.find())
    assert unknown.value.retry_after_s is not None


def test_faults_of_the_question_do_not_go_to_the_fallback(kind: str, valkey: ValkeyServer) -> None:
    ask = asker(kind, valkey.url, fallback=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(HeadroomError) as unknown:
        ask(lambda client: client.get(agent_id(99)))
    assert unknown.value.code == "agent_not_found"


def test_a_dead_way_is_not_waited_for_at_every_call() -> None:
    now = [100.0]
    route = Route(["first", "second"], now_s=lambda: now[0])
    assert route.order() == ("first", "second")
    route.failed("first")
    route.answered("second")
    assert route.order() == ("second", "first")
    now[0] += FALLBACK_FOR_S
    assert route.order() == ("first", "second")
    route.failed("first")
    route.failed("second")
    route.answered("first")
    assert route.order() == ("first", "second")


def test_a_hanging_redis_is_given_up_after_the_timeout(
    kind: str, valkey: ValkeyServer, sqlite_record_url: str
) -> None:
    fill_record(sqlite_record_url)
    with api(valkey.url, sqlite_record_url, redis_timeout_s=0.1) as api_url:
        valkey.pause()
        try:
            with pytest.raises(IndexUnavailableError):
                asker(kind, valkey.url, timeout_s=0.1)(lambda client: client.find(40))
            ask = asker(kind, valkey.url, fallback=api_url, timeout_s=5.0)
            assert numbers(ask(lambda client: client.find(40))) == [4]
        finally:
            valkey.resume()


# --- one server, not quite as it was ---


def test_a_restarted_server_is_not_trusted_before_it_was_rebuilt(valkey: ValkeyServer) -> None:
    with CapacityClient(valkey.url, timeout_s=PATIENCE_S) as client:
        assert numbers(client.find(40)) == [4]
        valkey.restart()
        # Its data is all there, and may be a second older than what it had acknowledged.
        with valkey.client() as plain:
            assert plain.exists(Keys().epoch)
        for _ in range(2):
            with pytest.raises(IndexRebuildingError):
                client.find(40)
        open_epoch(valkey.url)
        assert numbers(client.find(40)) == [4]


async def test_a_restarted_server_with_asyncio(valkey_url: str) -> None:
    server = await asyncio.to_thread(start_valkey, appendonly=True)
    with server:
        await asyncio.to_thread(fill, server.url)
        async with AsyncCapacityClient(server.url, timeout_s=PATIENCE_S) as client:
            assert numbers(await client.find(40)) == [4]
            await asyncio.to_thread(server.restart)
            with pytest.raises(IndexRebuildingError):
                await client.find(40)
            async with opened_index(index_settings(server.url)):
                assert numbers(await client.find(40)) == [4]


async def test_a_server_that_was_replaced_is_left(valkey: ValkeyServer, valkey_url: str) -> None:
    """The old primary lives on as a replica of the new one, and connections to it stay open."""
    fleet = [machine(9, 64.0, 8)]
    with await asyncio.to_thread(start_valkey) as newer, Proxy(valkey.port) as proxy:
        await asyncio.to_thread(fill, newer.url, heartbeats=fleet)
        url = f"redis://127.0.0.1:{proxy.port}"
        async with AsyncCapacityClient(url, timeout_s=PATIENCE_S) as tasks:
            with CapacityClient(url, timeout_s=PATIENCE_S) as client:
                assert numbers(await asyncio.to_thread(client.find, 40)) == numbers(await tasks.find(40)) == [4]
                proxy.target = newer.port
                with valkey.client() as old, newer.client() as new:
                    old.set(Keys().epoch, new.get(Keys().epoch))
                for _ in range(2):
                    assert numbers(await asyncio.to_thread(client.find, 40)) == [9]
                    assert numbers(await tasks.find(40)) == [9]
                assert proxy.connections == 2


def test_a_new_epoch_is_learnt_on_the_same_connection(redis_url: str) -> None:
    fill(redis_url)
    with CapacityClient(redis_url) as client:
        assert numbers(client.find(40)) == [4]
        open_epoch(redis_url)
        assert numbers(client.find(40)) == [4]
        assert client.count(40) == 2


def test_scripts_that_the_server_forgot_are_sent_again(
    kind: str, valkey_server: ValkeyServer, redis_url: str
) -> None:
    fill(redis_url)

    def forgetful(question: Any) -> Any:
        with valkey_server.client() as plain:
            plain.script_flush()
        return question

    ask = asker(kind, redis_url)
    assert ask(lambda client: forgetful(client).count(40)) == 2
    assert numbers(ask(lambda client: forgetful(client).find(40))) == [4]


# --- silent agents ---


def crowd(redis_url: str, *, silent: int) -> None:
    """Many silent agents in front of the one that lives."""
    fleet = [machine(1, 10.0, 8)]
    fill(redis_url, heartbeats=fleet)

    async def lost() -> None:
        async with opened_index(index_settings(redis_url), epoch=False) as index:
            long_ago = [(StreamId(1_700_000_000_000, n), machine(100 + n, 20.0, 8)) for n in range(silent)]
            await index.upkeep.apply(long_ago)

    asyncio.run(lost())


def test_silent_agents_are_passed_over_and_swept_out_of_the_way(
    kind: str, redis_url: str, valkey_server: ValkeyServer
) -> None:
    crowd(redis_url, silent=200)
    ask = asker(kind, redis_url)
    assert numbers(ask(lambda client: client.find(limit=5))) == [1]
    with valkey_server.client() as plain:
        assert plain.zcard(Keys().silent) > 0


READER = "user reader on >secret ~headroom* resetchannels -@all +@connection +info +get +evalsha +eval"
READS = "+zrange +zcount +zmscore +zscore +hget +hmget +time +xinfo +xrange +xpending"


def test_a_user_who_may_only_read_is_enough(kind: str) -> None:
    with start_valkey(config=[f"{READER} {READS}"]) as server:
        crowd(server.url, silent=200)
        reader = f"redis://reader:secret@127.0.0.1:{server.port}/0"
        ask = asker(kind, reader)
        assert numbers(ask(lambda client: client.find(limit=5))) == [1]
        assert ask(lambda client: client.count(1, 8)) == 202
        assert ask(lambda client: client.get(agent_id(1))).gpu_vram_available_gb == 10.0
        with pytest.raises(IndexUnavailableError, match="refuses this user"):
            ask(lambda client: client.explain())
        with server.client() as plain:
            assert plain.zcard(Keys().silent) == 0


def test_a_wrong_password_and_a_missing_right_are_named(kind: str) -> None:
    with start_valkey(config=["user reader on >secret ~headroom* -@all +@connection +get"]) as server:
        fill(server.url)
        for password in ("wrong", "secret"):
            with pytest.raises(IndexUnavailableError, match="refuses this user"):
                asker(kind, f"redis://reader:{password}@127.0.0.1:{server.port}/0")(lambda client: client.find())


def test_an_agent_that_cannot_be_read_is_skipped(kind: str, redis_url: str, valkey_server: ValkeyServer) -> None:
    fill(redis_url)
    with valkey_server.client() as plain:
        plain.hset(Keys().agent(agent_id(3)), mapping={"document": "broken", "cpu_percent": "broken"})
    ask = asker(kind, redis_url)
    assert numbers(ask(lambda client: client.find(12))) == [4, 2, 1]
    assert ask(lambda client: client.get(agent_id(3))).gpu_vram_available_gb == 0.0


def test_without_a_published_offline_after_nothing_is_trusted(
    kind: str, redis_url: str, valkey_server: ValkeyServer
) -> None:
    fill(redis_url)
    with valkey_server.client() as plain:
        plain.delete(Keys().offline_after)
    with pytest.raises(IndexRebuildingError):
        asker(kind, redis_url)(lambda client: client.find())


def test_the_published_offline_after_counts(kind: str, redis_url: str) -> None:
    async def fill_with_patience() -> None:
        async with opened_index(index_settings(redis_url, offline_after_s=86_400.0)) as index:
            await index.upkeep.apply([(StreamId(int(time.time() * 1000) - 3_600_000), machine(SILENT, 9.0, 9))])

    asyncio.run(fill_with_patience())
    assert numbers(asker(kind, redis_url)(lambda client: client.find())) == [SILENT]
