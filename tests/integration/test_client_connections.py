"""The connections of a planner's client: cut, forgotten, shared by threads, left to a child, closed."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from app.client import AsyncCapacityClient, CapacityClient, IndexUnavailableError
from tests.faults.proxy import Proxy
from tests.planning import KINDS, api, fill, numbers
from tests.servers import ValkeyServer
from tests.waiting import PATIENCE_S, wait_until

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def proxied(proxy: Proxy) -> str:
    return f"redis://127.0.0.1:{proxy.port}"


# --- lost ---


def test_a_connection_that_was_cut_is_made_anew(valkey_server: ValkeyServer, redis_url: str) -> None:
    fill(redis_url)
    with CapacityClient(redis_url) as client, valkey_server.client() as plain:
        assert numbers(client.find(40)) == [4]
        assert [entry["name"] for entry in plain.client_list(_type="normal")].count("headroom-client") == 1
        plain.client_kill_filter(_type="normal", skipme=True)
        assert numbers(client.find(40)) == [4]


def test_a_connection_that_was_cut_is_made_anew_with_asyncio(valkey_server: ValkeyServer, redis_url: str) -> None:
    fill(redis_url)

    async def cut_between() -> list[int]:
        async with AsyncCapacityClient(redis_url) as client:
            await client.find(40)
            with valkey_server.client() as plain:
                plain.client_kill_filter(_type="normal", skipme=True)
            return numbers(await client.find(40))

    assert asyncio.run(cut_between()) == [4]


def test_one_lookup_at_most_waits_for_what_a_firewall_forgot(redis_url: str, valkey_server: ValkeyServer) -> None:
    fill(redis_url)
    together = threading.Barrier(4)
    with Proxy(valkey_server.port) as proxy, CapacityClient(proxied(proxy), timeout_s=1.0) as client:

        def ask(_: object) -> list[int]:
            together.wait(PATIENCE_S)
            return numbers(client.find(40))

        proxy.reply_delay_s = 0.02
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(ask, range(4))) == [[4]] * 4
        proxy.reply_delay_s = 0.0
        assert proxy.connections > 1
        proxy.forget()
        with pytest.raises(IndexUnavailableError):
            client.find(40)
        for _ in range(3):
            assert numbers(client.find(40)) == [4]


@pytest.mark.parametrize("own_limit_s", [None, 0.8])
async def test_one_lookup_at_most_waits_for_what_a_firewall_forgot_with_asyncio(
    redis_url: str, valkey_server: ValkeyServer, own_limit_s: float | None
) -> None:
    """Also where the caller's own limit comes first."""
    await asyncio.to_thread(fill, redis_url)
    with Proxy(valkey_server.port) as proxy:
        async with AsyncCapacityClient(proxied(proxy), timeout_s=1.0) as client:
            proxy.reply_delay_s = 0.02
            found = await asyncio.gather(*(client.find(40) for _ in range(4)))
            assert [numbers(agents) for agents in found] == [[4]] * 4
            proxy.reply_delay_s = 0.0
            assert proxy.connections > 1
            proxy.forget()
            with pytest.raises(IndexUnavailableError if own_limit_s is None else TimeoutError):
                async with asyncio.timeout(own_limit_s):
                    await client.find(40)
            for _ in range(3):
                assert numbers(await client.find(40)) == [4]


def test_an_http_connection_that_is_cut_during_a_call_is_made_anew(kind: str) -> None:
    """Each connection answers one request and closes when the next one comes."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n[]"
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(answer)
                    connection.recv(4096)

        server = threading.Thread(target=serve)
        server.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

        async def ask_twice() -> list[Any]:
            async with AsyncCapacityClient(url, timeout_s=PATIENCE_S) as client:
                return [await client.find(), await client.find()]

        if kind == "asyncio":
            assert asyncio.run(ask_twice()) == [[], []]
        else:
            with CapacityClient(url, timeout_s=PATIENCE_S) as client:
                assert [client.find(), client.find()] == [[], []]
        server.join(PATIENCE_S)
        assert not server.is_alive()


def test_a_cancelled_call_leaves_nothing_behind(redis_url: str, valkey_server: ValkeyServer) -> None:
    fill(redis_url)

    async def cancelled_then_asked() -> tuple[list[int], int]:
        async with AsyncCapacityClient(redis_url, timeout_s=PATIENCE_S) as client:
            await client.count()
            valkey_server.pause()
            try:
                call = asyncio.create_task(client.find(4))
                await asyncio.sleep(0.05)
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
            finally:
                valkey_server.resume()
            return numbers(await client.find(40)), await client.count(40)

    assert asyncio.run(cancelled_then_asked()) == ([4], 2)


# --- threads, forks, ends ---


def test_threads_share_a_client(redis_url: str, valkey_server: ValkeyServer) -> None:
    fill(redis_url)
    answers: list[list[int]] = []
    with CapacityClient(redis_url, timeout_s=PATIENCE_S) as client:

        def ask_often() -> None:
            answers.extend(numbers(client.find(gb)) for gb in (12, 16, 24, 80) * 25)

        threads = [threading.Thread(target=ask_often) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with valkey_server.client() as plain:
            connections = [entry["name"] for entry in plain.client_list()].count("headroom-client")
    assert len(answers) == 800
    assert all(answer == [4, 3, 2, 1][: len(answer)] for answer in answers)
    assert connections <= 8
    with valkey_server.client() as plain:
        wait_until(
            lambda: "headroom-client" not in [entry["name"] for entry in plain.client_list()], what="the close"
        )


FORKING = """
    import os, sys
    from app.client import CapacityClient

    client = CapacityClient(sys.argv[1], timeout_s=60.0)
    assert len(client.find(12)) == 4
    reading, writing = os.pipe()
    child = os.fork()
    for _ in range(50):
        assert [agent.gpu_vram_available_gb for agent in client.find(24)] == [80.0, 24.0]
        assert client.count(80) == 1
    if child == 0:
        client.close()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert len(client.find(12)) == 4
    client.close()
"""


@pytest.mark.parametrize("way", ["redis", "http"])
def test_a_forked_child_has_connections_of_its_own(way: str, redis_url: str, sqlite_record_url: str) -> None:
    fill(redis_url)
    with api(redis_url, sqlite_record_url) as api_url:
        done = subprocess.run(
            [
                sys.executable,
                "-W",
                "error",
                "-c",
                textwrap.dedent(FORKING),
                api_url if way == "http" else redis_url,
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
    assert done.returncode == 0, done.stderr


def test_a_closed_client_says_so(redis_url: str) -> None:
    client = CapacityClient(redis_url)
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.find()


def test_a_client_of_another_event_loop_says_so(redis_url: str) -> None:
    fill(redis_url)
    client = AsyncCapacityClient(redis_url)

    async def used_and_closed() -> None:
        await client.find()
        await client._route.ways[0].close()

    asyncio.run(used_and_closed())
    with pytest.raises(RuntimeError, match="event loop"):
        asyncio.run(client.find())
