"""Script calls that travel together: their order, what becomes of those that fail, and how many they are."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest
import redis.asyncio as aredis
from redis.exceptions import ConnectionError, ResponseError  # noqa: A004  # redis-py's name

from app.index import execute
from app.index.connect import connect
from app.index.execute import Pace, run_few_at_a_time
from app.index.scripts import Call, Script
from tests.indexing import index_settings

_NOTE = """
if ARGV[1] == 'bad' then return redis.error_reply('ERR asked for') end
redis.call('RPUSH', KEYS[1] .. ':noted', ARGV[1])
return ARGV[1]
"""
_SCRIPT = Script("note", _NOTE, hashlib.sha1(_NOTE.encode(), usedforsecurity=False).hexdigest())

both_ways = pytest.mark.parametrize("ahead", [False, True], ids=["one by one", "ahead"])


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[aredis.Redis]:
    """With a single connection: whoever keeps it, or wants two, gets no further."""
    client = connect(index_settings(redis_url, redis_pool_size=1, redis_timeout_s=5.0), purpose="test")
    await client.script_flush()
    yield client
    await client.aclose()


@pytest.fixture
async def other(redis_url: str) -> AsyncIterator[aredis.Redis]:
    client = connect(index_settings(redis_url), purpose="other")
    yield client
    await client.aclose()


def calls(names: Iterable[object]) -> list[Call]:
    return [Call(_SCRIPT, "test", (str(name),)) for name in names]


def taken(names: Iterable[object]) -> list[bytes]:
    return [str(name).encode() for name in names]


async def noted(client: aredis.Redis) -> list[bytes]:
    found: list[Any] = await client.lrange("test:noted", 0, -1)
    return found


@both_ways
@pytest.mark.parametrize("number", [0, 1, 2, 3, 50])
async def test_replies_and_effects_are_in_the_order_of_the_calls(
    client: aredis.Redis, number: int, *, ahead: bool
) -> None:
    replies = await run_few_at_a_time(client, iter(calls(range(number))), Pace(), ahead=ahead)
    assert replies == taken(range(number))
    assert await noted(client) == taken(range(number))


@both_ways
async def test_scripts_that_are_lost_on_the_way_are_loaded_again_and_no_call_is_missing(
    client: aredis.Redis, other: aredis.Redis, monkeypatch: pytest.MonkeyPatch, *, ahead: bool
) -> None:
    receive = execute._Line.receive
    rounds = 0

    async def losing(line: execute._Line) -> list[object]:
        nonlocal rounds
        rounds += 1
        if rounds in {3, 4, 9}:
            await other.script_flush()
        return await receive(line)

    send = execute._Line._send

    async def lost_again(line: execute._Line, batch: list[Call], commands: list[tuple[Any, ...]]) -> None:
        if rounds % 2:
            await other.script_flush()
        await send(line, batch, commands)

    monkeypatch.setattr(execute._Line, "receive", losing)
    monkeypatch.setattr(execute._Line, "_send", lost_again)
    assert await run_few_at_a_time(client, iter(calls(range(100))), Pace(3), ahead=ahead) == taken(range(100))
    assert rounds > 9
    last = dict(zip(await noted(client), range(1_000), strict=False))
    assert list(last) == taken(range(100))
    assert sorted(last.values()) == list(last.values()), "a call ran again, and one after it did not"


@both_ways
async def test_a_call_that_fails_leaves_no_reply_to_whoever_comes_next(
    client: aredis.Redis, *, ahead: bool
) -> None:
    with pytest.raises(ResponseError, match="asked for"):
        await run_few_at_a_time(client, iter(calls([1, 2, "bad", 4, 5, 6, 7, 8])), Pace(2), ahead=ahead)
    ran = await noted(client)
    assert ran == taken([1, 2, 4, 5, 6] if ahead else [1, 2, 4])
    assert await asyncio.gather(*(client.echo(str(n)) for n in range(10))) == taken(range(10))
    assert await run_few_at_a_time(client, iter(calls("abc")), Pace(), ahead=ahead) == taken("abc")


@both_ways
async def test_who_gives_up_leaves_no_reply_to_the_next_caller(
    client: aredis.Redis, monkeypatch: pytest.MonkeyPatch, *, ahead: bool
) -> None:
    waiting = asyncio.Event()

    async def never(_: execute._Line) -> list[object]:
        waiting.set()
        await asyncio.sleep(3600)
        raise AssertionError

    with monkeypatch.context() as patched:
        patched.setattr(execute._Line, "receive", never)
        running = asyncio.create_task(run_few_at_a_time(client, iter(calls(range(9))), Pace(2), ahead=ahead))
        await waiting.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert await asyncio.gather(*(client.echo(str(n)) for n in range(10))) == taken(range(10))


async def test_what_was_sent_before_a_connection_closed_gets_no_other_replies(
    client: aredis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = execute._Line.send

    async def closing(line: execute._Line, batch: list[Call]) -> None:
        if line.waiting:
            await line._connection.disconnect()
        await send(line, batch)

    monkeypatch.setattr(execute._Line, "send", closing)
    with pytest.raises(ConnectionError):
        await run_few_at_a_time(client, iter(calls(range(9))), Pace(2), ahead=True)
    assert set(await noted(client)) <= set(taken(range(2)))


@both_ways
async def test_nobody_waits_for_a_connection_until_all_is_through(client: aredis.Redis, *, ahead: bool) -> None:
    running = [
        asyncio.create_task(run_few_at_a_time(client, iter(calls(range(2_000))), Pace(), ahead=ahead))
        for _ in range(2)
    ]
    await asyncio.sleep(0)
    await client.ping()
    assert not any(task.done() for task in running)
    assert await asyncio.gather(*running) == [taken(range(2_000))] * 2


@both_ways
@pytest.mark.parametrize("least", [1, 4])
async def test_a_slow_server_is_sent_no_more_at_once_than_need_be(
    client: aredis.Redis, monkeypatch: pytest.MonkeyPatch, least: int, *, ahead: bool
) -> None:
    send, receive = execute._Line.send, execute._Line.receive
    sent: list[int] = []

    async def counted(line: execute._Line, batch: list[Call]) -> None:
        sent.append(len(batch))
        await send(line, batch)

    async def slow(line: execute._Line) -> list[object]:
        await asyncio.sleep(2 * execute._LONG_S)
        return await receive(line)

    await client.script_load(_SCRIPT.source)
    monkeypatch.setattr(execute._Line, "send", counted)
    monkeypatch.setattr(execute._Line, "receive", slow)
    assert await run_few_at_a_time(client, iter(calls(range(16))), Pace(least), ahead=ahead) == taken(range(16))
    assert sent == [least] * (16 // least)


async def test_a_fast_server_is_sent_more_at_once() -> None:
    pace = Pace()
    for _ in range(10):
        pace.adapt(execute._SHORT_S / 2)
    assert pace.at_once == execute._MOST_AT_ONCE
    pace.adapt((execute._SHORT_S + execute._LONG_S) / 2)
    assert pace.at_once == execute._MOST_AT_ONCE
    for _ in range(10):
        pace.adapt(2 * execute._LONG_S)
    assert pace.at_once == 1
