"""What would end in a bad night is refused at the start."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.conftest import Row
from tests.faults.house import environment_of
from tests.faults.nursery import Nursery, Process
from tests.servers import PostgresServer, start_valkey
from tests.waiting import wait_until

Start = Callable[..., list[Process]]
PARTS = (["api"], ["worker", "ingest"], ["worker", "recorder"], ["worker", "reaper"])


@pytest.fixture
def start(nursery: Nursery, tmp_path: Path, database_url: str, servers: ExitStack) -> Start:
    """Starts every part with these settings, on a sound Redis and record unless they say otherwise."""
    redis_url = servers.enter_context(start_valkey()).url

    def start_all(**changes: object) -> list[Process]:
        settings = {
            "redis_url": redis_url,
            "database_url": database_url,
            "data_dir": tmp_path,
            "port": 0,
            **changes,
        }
        started = []
        for arguments in PARTS:
            output = tmp_path / f"{'-'.join(arguments)}.log"
            output.write_text("")
            started.append(nursery.start(arguments, environment_of(settings), output=output))
        return started

    return start_all


def reasons(processes: list[Process]) -> set[str]:
    """The last line of each, all of which must have refused."""
    statuses = [process.until_ended() for process in processes]
    assert statuses == [os.EX_CONFIG] * len(PARTS), [process.log for process in processes]
    assert not any("Traceback" in process.log for process in processes)
    return {process.log.strip().splitlines()[-1] for process in processes}


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_row_12_evicting_policy(start: Start, row: Row, servers: ExitStack, policy: str) -> None:
    """Redis has an evicting maxmemory-policy."""
    server = servers.enter_context(start_valkey(config=[f"maxmemory-policy {policy}"]))
    [reason] = reasons(start(redis_url=server.url))
    assert policy in reason
    assert "CONFIG SET maxmemory-policy noeviction" in reason
    row.saw(f"{policy}: all parts end with 78 and say what to set")


def test_row_12_missing_commands(start: Start, row: Row, servers: ExitStack) -> None:
    """Redis lacks commands that are needed."""
    server = servers.enter_context(
        start_valkey(config=['rename-command XAUTOCLAIM ""', 'rename-command ZMSCORE ""'])
    )
    [reason] = reasons(start(redis_url=server.url))
    assert "xautoclaim, zmscore" in reason
    row.saw("missing commands are named")


def test_row_12_blocking_longer_than_the_socket_timeout(start: Start, row: Row) -> None:
    """A read of the stream may block for longer than its socket waits."""
    [reason] = reasons(start(stream_block_s=5, stream_timeout_s=5))
    assert "HEADROOM_STREAM_BLOCK_S must be below HEADROOM_STREAM_TIMEOUT_S" in reason
    row.saw("BLOCK above the socket timeout is refused")


def test_row_12_evicting_policy_of_a_server_that_comes_later(start: Start, row: Row, servers: ExitStack) -> None:
    """Redis is away at the start, and has an evicting maxmemory-policy when it comes."""
    server = servers.enter_context(start_valkey(config=["maxmemory-policy allkeys-lru"]))
    server.stop()
    processes = start(redis_url=server.url)
    wait_until(
        lambda: all("does not answer yet" in process.log for process in processes),
        timeout_s=60,
        what="starts without Redis",
    )
    server.start()
    [reason] = reasons(processes)
    assert "allkeys-lru" in reason
    row.saw("a Redis that comes later is checked then")


def test_row_12_schema_not_migrated(start: Start, row: Row, postgres_server: PostgresServer) -> None:
    """The record's schema is not there."""
    name = postgres_server.create_database()
    [reason] = reasons(start(database_url=postgres_server.database_url(name)))
    assert "headroom migrate" in reason
    postgres_server.drop_database(name)
    row.saw("a schema that is not migrated names the command")
