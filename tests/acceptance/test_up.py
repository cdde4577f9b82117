"""`headroom up` as a person meets it: real processes, real heartbeats, real signals."""

from __future__ import annotations

import re
import signal
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from tests.processes import Headroom, start_up
from tests.waiting import PATIENCE_S, wait_until

SEARCH = "/api/v1/agents/available-capacity"
GIB = 2**30


def heartbeat(vram_gb: float, cores: int) -> dict[str, Any]:
    return {
        "pool_name": "acceptance",
        "hostname": "posted",
        "resource_metrics": {
            "cpu_cores_physical": 2 * cores,
            "cpu_cores_available": cores,
            "gpu_vram_total_gb": 2 * vram_gb,
            "gpu_vram_available_gb": vram_gb,
            "gpu_type": "nvidia",
        },
    }


def post_fleet(headroom: Headroom, *machines: tuple[float, int]) -> list[str]:
    """Posts one heartbeat for each (VRAM, cores) and waits until a search shows them all; returns their ids."""
    agent_ids = [str(uuid.uuid4()) for _ in machines]
    for agent_id, machine in zip(agent_ids, machines, strict=True):
        assert headroom.post(f"/api/v1/agents/{agent_id}/heartbeat", heartbeat(*machine)).status_code == 202
    wait_until(lambda: set(agent_ids) <= set(search(headroom)), what="the posted agents in a search")
    return agent_ids


def search(headroom: Headroom, **parameters: str | float) -> list[str]:
    response = headroom.get(SEARCH, **parameters)
    assert response.status_code == 200, response.text
    return [agent["agent_id"] for agent in response.json()]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Headroom]:
    """One for all tests that leave it as it was."""
    with start_up(tmp_path_factory.mktemp("up") / "data") as headroom:
        yield headroom.until_ready()


def test_it_says_where_things_are_without_colours_for_a_file(running: Headroom) -> None:
    running.until_printed("redis-cli")
    assert f"  Docs  {running.url}/docs" in running.output
    assert "\x1b[" not in running.output
    for path in ("/livez", "/readyz", "/metrics", "/docs"):
        assert running.get(path).status_code == 200, path


def test_this_machine_is_listed_with_its_true_figures(running: Headroom) -> None:
    def listed() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = running.get("/api/v1/agents", hostname=socket.gethostname()).json()
        return found

    [agent] = wait_until(listed, what="this machine")
    capacity = running.get(f"/api/v1/agents/{agent['agent_id']}/capacity").json()
    assert capacity["status"] == "online"
    assert capacity["cpu_cores_physical"] == psutil.cpu_count(logical=False)
    assert 0 <= capacity["cpu_cores_available"] <= capacity["cpu_cores_physical"]
    assert abs(capacity["memory_available_gb"] - psutil.virtual_memory().available / GIB) < 2.0


def test_the_printed_redis_cli_line_names_the_same_agents(running: Headroom) -> None:
    posted = post_fleet(running, (12.0, 8), (23.5, 16), (11.9, 8), (24.0, 7))
    running.until_printed("redis-cli")
    line = re.search(r"redis-cli -p (\d+) ZRANGEBYSCORE (\S+) 12 \+inf$", running.output, re.MULTILINE)
    assert line is not None
    with redis.Redis(port=int(line[1]), decode_responses=True) as client:
        rung = client.zrangebyscore(line[2], 12, "+inf")
        by_vram = client.zrangebyscore("headroom:desktop:vram", 12, "+inf")
        by_cores = client.zrangebyscore("headroom:desktop:cores", 8, "+inf")
    found = search(running, min_gpu_vram_gb=12, min_cpu_cores=8)
    assert found == rung[::-1]
    assert set(found) == set(by_vram) & set(by_cores)
    assert set(found) & set(posted) == {posted[0], posted[1]}


def test_a_second_start_with_the_same_data_says_so(
    running: Headroom, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data_dir = re.search(r"^  Data +(.+)$", running.until_printed("  Data").output, re.MULTILINE)
    assert data_dir is not None
    with start_up(Path(data_dir[1])) as second:
        assert second.process.wait(PATIENCE_S) == 78
        assert (
            f"already runs with the data directory {data_dir[1]} (process {running.process.pid}, {running.url})"
            in (second.output)
        )
        assert "--data-dir" in second.output
        assert "Traceback" not in second.output
    assert running.get("/readyz").status_code == 200


def test_a_taken_port_is_said(running: Headroom, tmp_path: Path) -> None:
    port = running.url.rpartition(":")[2]
    with Headroom("up", "--port", port, "--embedded-port", "0", "--data-dir", str(tmp_path)) as second:
        assert second.process.wait(PATIENCE_S) == 78
        assert f"127.0.0.1:{port}" in second.output
        assert "--port" in second.output
        second.until_gone()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_ends_everything(tmp_path: Path, number: signal.Signals) -> None:
    with start_up(tmp_path, "--simulate", "50") as headroom:
        headroom.until_ready().until_printed("50 simulated agents")
        assert len(headroom.family()) >= 8
        assert headroom.end(number) == 0
        assert not headroom.family()
        assert "Traceback" not in headroom.output


def test_a_signal_during_the_start_ends_everything(tmp_path: Path) -> None:
    with start_up(tmp_path) as headroom:
        wait_until((tmp_path / "valkey" / "valkey.pid").exists, what="the embedded server")
        assert headroom.end(signal.SIGTERM) == 0
        assert not headroom.family()


def test_kill_9_leaves_no_process_and_the_next_start_has_the_data(tmp_path: Path) -> None:
    with start_up(tmp_path) as first:
        [agent_id] = post_fleet(first.until_ready(), (40.0, 12))
        wait_until(lambda: first.get(f"/api/v1/agents/{agent_id}").status_code == 200, what="the record")
        first.end(signal.SIGKILL)
        first.until_gone()
    with start_up(tmp_path) as second:
        second.until_ready()
        wait_until(lambda: agent_id in search(second, min_gpu_vram_gb=40), what="the agent of before")
        assert second.end() == 0
        assert not second.family()


@pytest.mark.parametrize("part", [("worker", "ingest"), ("api",)], ids=" ".join)
def test_a_killed_part_is_started_again(running: Headroom, part: tuple[str, ...]) -> None:
    old = running.part(*part)
    old.kill()
    wait_until(lambda: not old.is_running(), what="its end")
    assert running.part(*part) != old
    post_fleet(running, (3.0, 3))


def test_a_killed_embedded_server_is_started_again(running: Headroom) -> None:
    [old] = [process for process in running.family() if "valkey" in process.name()]
    old.kill()
    wait_until(lambda: not old.is_running() and running.get("/readyz").is_success, what="another")
    wait_until(
        lambda: running.post(f"/api/v1/agents/{uuid.uuid4()}/heartbeat", heartbeat(5, 5)).status_code == 202,
        what="heartbeats taken again",
    )


def test_answers_heal_after_flushall_and_are_right_and_marked_meanwhile(tmp_path: Path) -> None:
    with start_up(tmp_path) as headroom:
        expected = post_fleet(headroom.until_ready(), (48.0, 32), (32.0, 16))
        for agent_id in expected:
            wait_until(lambda: headroom.get(f"/api/v1/agents/{agent_id}").is_success, what="the record")  # noqa: B023
        # Whoever rebuilds is held, so that what is answered meanwhile can be seen.
        healers = [headroom.part("worker", "ingest"), headroom.part("worker", "reaper")]
        for healer in healers:
            healer.suspend()
        with redis.Redis(unix_socket_path=str(tmp_path / "valkey" / "valkey.sock")) as client:
            client.flushall()
        meanwhile = headroom.get(SEARCH, min_gpu_vram_gb=32)
        assert [agent["agent_id"] for agent in meanwhile.json()] == expected
        assert meanwhile.headers["X-Capacity-Source"] == "record"
        assert "X-Capacity-As-Of" in meanwhile.headers
        for healer in healers:
            healer.resume()

        def healed() -> bool:
            answer = headroom.get(SEARCH, min_gpu_vram_gb=32)
            assert [agent["agent_id"] for agent in answer.json()] == expected
            return "X-Capacity-Source" not in answer.headers

        wait_until(healed, what="answers from the index")
        post_fleet(headroom, (64.0, 1))
