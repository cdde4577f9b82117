"""API and workers as separate processes on servers of their own, as in production."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.processes import Headroom
from tests.servers import PostgresServer, ValkeyServer, free_port, start_postgres, start_valkey
from tests.waiting import PATIENCE_S, wait_until

SEARCH = "/api/v1/agents/available-capacity"
WORKERS = ("ingest", "recorder", "reaper")


class Parts:
    """One process of each kind on a Valkey and a Postgres of their own."""

    def __init__(self, valkey: ValkeyServer, postgres: PostgresServer) -> None:
        self.valkey = valkey
        self.postgres = postgres
        # A plain postgresql:// as a person writes it.
        database_url = postgres.url.replace("+asyncpg", "")
        self.environment = {
            "HEADROOM_REDIS_URL": valkey.url,
            "HEADROOM_DATABASE_URL": database_url,
            "HEADROOM_PORT": "0",
            "HEADROOM_HEARTBEAT_INTERVAL_S": "1",
            "HEADROOM_OFFLINE_AFTER_S": "3",
            "HEADROOM_DATABASE_TIMEOUT_S": "2",
            "HEADROOM_SHUTDOWN_AFTER_S": "60",
        }
        self.api: Headroom
        self.workers: dict[str, Headroom] = {}

    def command(self, *arguments: str) -> Headroom:
        return Headroom(*arguments, environment=self.environment)

    def beat(self, agent_id: str, seq: int, *, vram_gb: float = 10.0, boot_id: str = "first") -> None:
        body: dict[str, Any] = {
            "boot_id": boot_id,
            "seq": seq,
            "resource_metrics": {
                "cpu_cores_available": 4,
                "gpu_vram_total_gb": 1000.0,
                "gpu_vram_available_gb": vram_gb,
            },
        }
        answer = self.api.post(f"/api/v1/agents/{agent_id}/heartbeat", body)
        assert answer.status_code == 202, answer.text

    def search(self, **parameters: float) -> list[str]:
        answer = self.api.get(SEARCH, **parameters)
        assert answer.status_code == 200, answer.text
        return [agent["agent_id"] for agent in answer.json()]


@pytest.fixture(scope="module")
def parts() -> Iterator[Parts]:
    with ExitStack() as stack:
        parts = Parts(stack.enter_context(start_valkey(appendonly=True)), stack.enter_context(start_postgres()))
        migrating = stack.enter_context(parts.command("migrate"))
        assert migrating.process.wait(PATIENCE_S) == 0, migrating.output
        parts.api = stack.enter_context(parts.command("api"))
        for name in WORKERS:
            parts.workers[name] = stack.enter_context(parts.command("worker", name))
        parts.api.until_ready()
        for worker in parts.workers.values():
            worker.until_printed("Worker runs")
        yield parts


def test_a_heartbeat_is_found_recorded_and_in_the_end_offline(parts: Parts) -> None:
    agent_id = str(uuid.uuid4())
    parts.beat(agent_id, 1)
    wait_until(lambda: agent_id in parts.search(min_gpu_vram_gb=10, min_cpu_cores=4), what="the agent in a search")
    wait_until(lambda: parts.api.get(f"/api/v1/agents/{agent_id}").is_success, what="the agent in the record")

    def offline_everywhere() -> bool:
        capacity = parts.api.get(f"/api/v1/agents/{agent_id}/capacity").json()
        details = parts.api.get(f"/api/v1/agents/{agent_id}").json()
        return (capacity["status"], details["status"]) == ("offline", "offline")

    wait_until(offline_everywhere, what="the agent to be offline")
    assert agent_id not in parts.search()


def test_a_record_that_is_away_changes_no_answer_and_loses_nothing(parts: Parts) -> None:
    before, after = str(uuid.uuid4()), str(uuid.uuid4())
    parts.beat(before, 1)
    wait_until(lambda: parts.api.get(f"/api/v1/agents/{before}").is_success, what="the agent in the record")
    parts.postgres.stop()
    for seq in range(2, 12):
        parts.beat(before, seq, vram_gb=100 + seq)
        parts.beat(after, seq, vram_gb=200 + seq)
    wait_until(lambda: parts.search(min_gpu_vram_gb=111) == [after, before], what="the newest figures")
    answer = parts.api.get(SEARCH, min_gpu_vram_gb=111)
    assert "X-Capacity-Source" not in answer.headers
    parts.postgres.start()

    def recorded(agent_id: str) -> tuple[int, float] | None:
        answer = parts.api.get(f"/api/v1/agents/{agent_id}")
        if not answer.is_success:
            return None
        agent = answer.json()
        return agent["seq"], agent["resource_metrics"]["gpu_vram_available_gb"]

    for agent_id, vram_gb in ((before, 111.0), (after, 211.0)):
        wait_until(lambda: recorded(agent_id) == (11, vram_gb), what="the record to catch up")  # noqa: B023  called at once
    assert "Traceback" not in parts.workers["recorder"].output


@pytest.mark.parametrize("name", WORKERS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_worker_ends_in_order(parts: Parts, name: str, number: signal.Signals) -> None:
    with parts.command("worker", name) as worker:
        worker.until_printed("Worker runs")
        assert worker.end(number) == 0
        assert "Ending a round that did not finish in time" not in worker.output
        assert "Traceback" not in worker.output


def test_an_api_that_is_killed_keeps_what_it_acknowledged(parts: Parts) -> None:
    with parts.command("api") as second:
        second.until_ready()
        agent_id = str(uuid.uuid4())
        body = {"resource_metrics": {"gpu_vram_available_gb": 500.0}}
        assert second.post(f"/api/v1/agents/{agent_id}/heartbeat", body).status_code == 202
        second.end(signal.SIGKILL)
    wait_until(lambda: agent_id in parts.search(min_gpu_vram_gb=500), what="the acknowledged heartbeat")


def test_an_api_ends_in_order_while_connections_are_open(parts: Parts) -> None:
    with parts.command("api") as second:
        with second.until_ready().client as client:
            assert client.get("/livez").is_success
            # Waiting for them would take the 60 s that it may drain.
            second.end(signal.SIGTERM, timeout_s=40)
        assert "Traceback" not in second.output


def test_migrating_twice_changes_nothing(parts: Parts) -> None:
    with parts.command("migrate") as again:
        assert again.process.wait(PATIENCE_S) == 0, again.output


def test_a_record_that_does_not_answer_is_said_without_a_trace(parts: Parts) -> None:
    nobody = f"postgresql://me@127.0.0.1:{free_port()}/headroom"
    with Headroom("migrate", environment={"HEADROOM_DATABASE_URL": nobody}) as migrating:
        assert migrating.process.wait(PATIENCE_S) not in (0, os.EX_CONFIG)
        assert "headroom: The durable record is away" in migrating.output
        assert "Traceback" not in migrating.output
