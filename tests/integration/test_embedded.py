"""The embedded server of `headroom up`: one per data directory, and nothing that blocks the next start."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest
import redis

from app.errors import StartupRefusedError
from app.index.embedded import EmbeddedValkey
from app.lockfile import LockFile, LockHeldError
from app.settings import Settings
from tests.servers import wait_until
from tests.waiting import PATIENCE_S


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", embedded_port=0)


def _client(server: EmbeddedValkey) -> redis.Redis:
    return redis.Redis.from_url(server.url, decode_responses=True, socket_timeout=PATIENCE_S)


async def test_data_survives_an_orderly_stop(settings: Settings) -> None:
    server = EmbeddedValkey(settings)
    await server.start()
    with _client(server) as client:
        client.set("kept", "1")
    await server.stop()
    assert server.pid is None
    await server.start()
    with _client(server) as client:
        assert client.get("kept") == "1"
    await server.stop()


async def test_it_answers_on_the_socket_and_on_a_loopback_port(settings: Settings) -> None:
    server = EmbeddedValkey(settings)
    await server.start()
    assert server.url.startswith("unix://")
    with redis.Redis(port=server.port, decode_responses=True) as client:
        assert client.config_get("maxmemory-policy", "appendonly", "appendfsync", "bind") == {
            "maxmemory-policy": "noeviction",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "bind": "127.0.0.1",
        }
    await server.stop()


async def test_a_path_too_long_for_a_socket_leaves_the_port(tmp_path: Path) -> None:
    server = EmbeddedValkey(Settings(data_dir=tmp_path / ("long " * 20), embedded_port=0))
    await server.start()
    assert server.url == f"redis://127.0.0.1:{server.port}/0"
    await server.stop()


async def test_a_taken_port_is_left_alone(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        server = EmbeddedValkey(Settings(data_dir=tmp_path, embedded_port=taken))
        await server.start()
        assert server.port != taken
        await server.stop()


async def test_a_second_start_on_the_same_directory_is_refused(settings: Settings) -> None:
    first = EmbeddedValkey(settings)
    await first.start()
    with pytest.raises(StartupRefusedError, match=rf"process {os.getpid()}.*--data-dir"):
        await EmbeddedValkey(settings).start()
    with _client(first) as client:
        assert client.ping()
    await first.stop()


async def test_a_killed_server_starts_again_with_the_same_address(settings: Settings) -> None:
    server = EmbeddedValkey(settings)
    await server.start()
    with _client(server) as client:
        client.set("kept", "1")
    await asyncio.sleep(1.2)  # everysec: what is older than a second is on disk
    pid, url, port = server.pid, server.url, server.port
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert await server.wait() == -signal.SIGKILL
    await server.start()
    assert (server.url, server.port) == (url, port)
    with _client(server) as client:
        assert client.get("kept") == "1"
    await server.stop()


def _start_in_another_process(settings: Settings, *, tied: bool) -> subprocess.Popen[str]:
    script = textwrap.dedent(f"""
        import asyncio, pathlib
        from app.index import embedded
        from app.settings import Settings
        if not {tied}:
            embedded.die_with_parent = lambda: None

        async def main():
            data_dir = pathlib.Path({str(settings.data_dir)!r})
            server = embedded.EmbeddedValkey(Settings(data_dir=data_dir, embedded_port=0))
            await server.start()
            print(server.pid, flush=True)
            await asyncio.sleep(60)

        asyncio.run(main())
    """)
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


def _kill_and_return_server_pid(starter: subprocess.Popen[str]) -> int:
    with starter:
        assert starter.stdout is not None
        server_pid = int(starter.stdout.readline())
        starter.kill()
    return server_pid


if sys.platform == "linux":  # elsewhere the next start does it, as in the test below

    def test_the_server_ends_with_a_killed_starter(settings: Settings) -> None:
        pid = _kill_and_return_server_pid(_start_in_another_process(settings, tied=True))
        wait_until(lambda: not psutil.pid_exists(pid), what="the server's end")


async def test_a_server_left_behind_is_stopped_by_the_next_start(settings: Settings) -> None:
    left = _kill_and_return_server_pid(_start_in_another_process(settings, tied=False))
    assert psutil.pid_exists(left)
    server = EmbeddedValkey(settings)
    await server.start()
    assert not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE
    with _client(server) as client:
        assert client.ping()
    await server.stop()


async def test_a_file_the_server_refuses_is_named(settings: Settings) -> None:
    server = EmbeddedValkey(settings)
    await server.start()
    with _client(server) as client:
        client.set("a", "1")
    await server.stop()
    [log] = (server.directory / "appendonlydir").glob("*.incr.aof")
    log.write_bytes(b"*1\r\n$3\r\nNOT" + log.read_bytes())
    with pytest.raises(StartupRefusedError, match=r"valkey\.log"):
        await server.start()


async def test_a_cut_off_tail_is_dropped(settings: Settings) -> None:
    server = EmbeddedValkey(settings)
    await server.start()
    with _client(server) as client:
        client.set("whole", "1")
        client.set("cut", "1" * 100)
    await server.stop()
    [log] = (server.directory / "appendonlydir").glob("*.incr.aof")
    log.write_bytes(log.read_bytes()[:-50])
    await server.start()
    with _client(server) as client:
        assert client.keys() == ["whole"]
    await server.stop()


def test_a_lock_is_held_by_one_and_says_by_whom(tmp_path: Path) -> None:
    first, second = LockFile(tmp_path / "lock"), LockFile(tmp_path / "lock")
    first.acquire(note="here")
    with pytest.raises(LockHeldError) as held:
        second.acquire()
    assert held.value.holder is not None
    assert (held.value.holder.pid, held.value.holder.note, held.value.holder.alive) == (os.getpid(), "here", True)
    first.release()
    second.acquire()
    second.release()
