"""The test servers themselves: what fault tests will rely on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import psutil
import pytest
import redis

from tests import postgres_install
from tests.servers import PostgresServer, ServerFailedError, start_postgres, start_valkey, wait_until


def test_valkey_keeps_its_data_through_kill_and_restart_with_appendonly() -> None:
    with start_valkey(appendonly=True, config=["appendfsync always"]) as server:
        with server.client() as client:
            client.set("kept", "1")
        first = server.pid
        server.kill()
        assert not psutil.pid_exists(first)
        server.start()
        assert server.pid != first
        with server.client() as client:
            assert client.get("kept") == "1"


def test_valkey_without_appendonly_comes_back_empty() -> None:
    with start_valkey(unix_socket=True) as server:
        with server.client() as client:
            client.set("lost", "1")
        server.restart()
        with server.client() as client:
            assert client.dbsize() == 0


def test_a_paused_valkey_hangs_and_a_resumed_one_answers() -> None:
    with start_valkey() as server, redis.Redis.from_url(server.url, socket_timeout=0.2, retry=None) as client:
        client.ping()
        server.pause()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        server.resume()
        assert client.ping()


def test_extra_config_lines_win() -> None:
    with start_valkey(config=["maxmemory-policy allkeys-lru"]) as server, server.client() as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "allkeys-lru"}


def test_a_server_that_cannot_start_says_why() -> None:
    with pytest.raises(ServerFailedError, match="no-such-setting"):
        start_valkey(config=["no-such-setting 1"])


def test_each_test_has_a_database_of_its_own(postgres_server: PostgresServer, database_url: str) -> None:
    name = database_url.rpartition("/")[2]
    postgres_server.sql("CREATE TABLE only_here (n int)", database=name)
    other = postgres_server.create_database(template=name)
    assert postgres_server.sql("SELECT count(*) FROM only_here", database=other) == "0"
    postgres_server.drop_database(other)


@pytest.mark.parametrize("from_wheel", [False, True], ids=["system, if there is one", "wheel"])
def test_postgres_survives_kill_pause_and_restart(*, from_wheel: bool) -> None:
    with start_postgres(from_wheel=from_wheel) as server:
        server.sql("CREATE TABLE kept AS SELECT 7 AS n")
        server.kill()
        server.start()
        server.pause()
        server.resume()
        assert server.sql("SELECT n FROM kept") == "7"
        server.restart()
        assert server.sql("SELECT n FROM kept") == "7"


def test_the_wheel_s_postgres_runs_from_a_copy_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it must where root keeps the checkout in a folder that no other user may enter."""
    monkeypatch.setattr(postgres_install, "others_may_enter", lambda path: not path.match("*/bin"))
    with start_postgres(from_wheel=True) as server:
        assert server.sql("SELECT 7") == "7"


def test_servers_end_with_a_killed_test_run() -> None:
    script = textwrap.dedent("""
        import time
        from tests.servers import start_postgres, start_valkey
        print(start_valkey().pid, start_postgres().pid, flush=True)
        time.sleep(60)
    """)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        pids = [int(pid) for pid in run.stdout.readline().split()]
        assert len(pids) == 2
        os.kill(run.pid, signal.SIGKILL)
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids), what="the servers' end")


def test_waiting_in_vain_fails() -> None:
    with pytest.raises(AssertionError, match="for the impossible"):
        wait_until(lambda: False, timeout_s=0.05, what="the impossible")
