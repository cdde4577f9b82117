"""Lookups from an event loop: replies that are late, in pieces, or no longer wanted."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import pytest

from app.client import AsyncCapacityClient, IndexUnavailableError
from app.index import links
from tests.faults import proxy as proxies
from tests.faults.proxy import Proxy
from tests.planning import fill, machine, numbers
from tests.servers import ValkeyServer
from tests.waiting import PATIENCE_S, wait_until_async

FLEET = 60


@pytest.fixture
def proxy(redis_url: str, valkey_server: ValkeyServer) -> Iterator[Proxy]:
    fill(redis_url, heartbeats=[machine(number, float(number), 8) for number in range(1, FLEET + 1)])
    with Proxy(valkey_server.port) as running:
        yield running


@pytest.fixture
async def client(proxy: Proxy) -> AsyncIterator[AsyncCapacityClient]:
    async with AsyncCapacityClient(f"redis://127.0.0.1:{proxy.port}", timeout_s=PATIENCE_S) as asked:
        yield asked


async def test_the_loop_goes_on_while_a_reply_is_late(proxy: Proxy, client: AsyncCapacityClient) -> None:
    assert numbers(await client.find(58)) == [60, 59, 58]
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.001)

    turning = asyncio.create_task(turn())
    for _ in range(40):
        proxy.reply_delay_s = 0.01
        before = turns
        assert numbers(await client.find(58)) == [60, 59, 58]
        assert turns > before
        proxy.reply_delay_s = 0.0
        assert numbers(await client.find(59)) == [60, 59]
    turning.cancel()


async def test_a_reply_in_pieces_is_put_together(
    proxy: Proxy, client: AsyncCapacityClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    everybody = numbers(await client.find())
    assert everybody == list(range(FLEET, 0, -1))
    monkeypatch.setattr(proxies, "_CHUNK", 700)
    proxy.reply_delay_s = 0.001
    # The chunk that is being waited for has the old size.
    for _ in range(3):
        assert numbers(await client.find()) == everybody
    assert await client.count(31) == 30


async def test_nobody_queues_for_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """More callers than threads that connect: all are told in time, and nobody connects for them later."""
    monkeypatch.setattr(links, "_CONNECTING", 1)
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        url = f"redis://127.0.0.1:{server.getsockname()[1]}"
        async with AsyncCapacityClient(url, timeout_s=0.2) as client:
            ends = await asyncio.gather(*(client.find(59) for _ in range(40)), return_exceptions=True)
        assert [type(end) for end in ends] == [IndexUnavailableError] * 40
        server.setblocking(False)
        tried = 0
        with suppress(BlockingIOError):
            while True:
                server.accept()[0].close()
                tried += 1
    # One thread would have tried for 0.2 s forty times in a row.
    assert 0 < tried < 20


async def test_whoever_is_cancelled_while_connecting_leaves_no_connection(
    proxy: Proxy, client: AsyncCapacityClient, valkey_server: ValkeyServer
) -> None:
    proxy.hold()
    calls = [asyncio.create_task(client.find(59)) for _ in range(12)]
    await wait_until_async(lambda: proxy.under_way >= 8)
    for call in calls:
        call.cancel()
    assert [type(end) for end in await asyncio.gather(*calls, return_exceptions=True)] == (
        [asyncio.CancelledError] * 12
    )
    proxy.release()
    assert numbers(await client.find(59)) == [60, 59]
    await wait_until_async(lambda: proxy.connections == 1)
    with valkey_server.client() as plain:
        named = [one for one in plain.client_list() if one["name"] == "headroom-client"]
    assert len(named) == 1
