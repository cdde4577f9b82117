"""The real `headroom agent`: its figures against other sources, bad drivers, and signals."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.agents import INTERVAL_S, Agents, until_sent
from tests.fake_nvml import GIB, TITAN, FakeNvml, build_library, fake_host
from tests.heartbeat_server import HeartbeatServer, Received, Reply
from tests.processes import ROOT, Headroom, start_up
from tests.servers import free_port
from tests.waiting import PATIENCE_S, wait_until


@pytest.fixture(scope="module")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def nvml(nvml_library: Path, tmp_path: Path) -> FakeNvml:
    return fake_host(tmp_path / "host", nvml_library)


def heartbeat_of(shown: str) -> dict[str, Any]:
    heartbeat: dict[str, Any] = json.loads(shown[shown.index("\n{\n") :])
    return heartbeat


def physical_cores_by_cpuinfo() -> int:
    """Pairs of package and core; processors that name neither count one each."""
    cores = set()
    for block in Path("/proc/cpuinfo").read_text().strip().split("\n\n"):
        fields = dict(re.findall(r"^([^\t:]+)\s*: (.*)$", block, re.MULTILINE))
        cores.add((fields.get("physical id"), fields.get("core id", fields.get("processor"))))
    return len(cores)


def meminfo() -> dict[str, int]:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}


def cgroup_limits(name_v2: str, name_v1: str) -> list[int]:
    """All limits of that kind above this process, found without knowing where: by walking every group it is in."""
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for mount in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup") / controllers):
            folder = mount / path.lstrip("/")
            for group in (folder, *folder.parents):
                for name in (name_v2, name_v1):
                    if group.is_relative_to("/sys/fs/cgroup") and (group / name).is_file():
                        first = (group / name).read_text().split()[0]
                        found += [int(first)] if first.lstrip("-").isdigit() else []
    return [limit for limit in found if 0 < limit < 1 << 60]


# Figures


def test_check_prints_this_machines_figures(agents: Agents) -> None:
    loads = [os.getloadavg()]
    heartbeat = heartbeat_of(agents.check())
    loads.append(os.getloadavg())
    metrics = heartbeat["resource_metrics"]
    physical = metrics["cpu_cores_physical"]

    assert physical == physical_cores_by_cpuinfo()
    lscpu = shutil.which("lscpu")
    if lscpu is not None:
        listed = subprocess.run([lscpu, "-p=CORE,SOCKET"], capture_output=True, text=True, check=True).stdout
        assert physical == len({line for line in listed.splitlines() if not line.startswith("#")})

    for name, column in (("cpu_load_1min", 0), ("cpu_load_5min", 1)):
        low, high = sorted(load[column] for load in loads)
        assert low - 0.3 <= metrics[name] <= high + 0.3
    quotas = cgroup_limits("cpu.max", "cpu.cfs_quota_us")
    if not quotas and len(os.sched_getaffinity(0)) == os.cpu_count():
        assert metrics["cpu_cores_available"] == max(int(physical - metrics["cpu_load_1min"] + 0.5), 0)
    assert 0 <= metrics["cpu_cores_available"] <= physical
    assert 0 <= metrics["cpu_percent"] <= 100

    memory = meminfo()
    limits = cgroup_limits("memory.max", "memory.limit_in_bytes")
    total = min([memory["MemTotal"], *limits])
    assert metrics["memory_available_gb"] <= total / GIB + 0.01
    if total == memory["MemTotal"]:
        assert metrics["memory_available_gb"] == pytest.approx(memory["MemAvailable"] / GIB, rel=0.05, abs=0.3)
    assert metrics["memory_percent"] == pytest.approx(
        100 * (1 - metrics["memory_available_gb"] * GIB / total), abs=0.5
    )
    assert heartbeat["hostname"] == socket.gethostname()


def test_check_shows_the_merged_settings_with_where_they_come_from(agents: Agents) -> None:
    settings = agents.folder / ".config/headroom/agent.yml"
    settings.parent.mkdir(parents=True)
    settings.write_text("pool_name: from-file\nagent_type: infra\n")
    shown = agents.check("--token", "s3cret", environment={"HEADROOM_AGENT_AGENT_TYPE": "laptop"})
    assert f"pool_name = from-file  [{settings}]" in shown
    assert "agent_type = laptop  [environment]" in shown
    assert "token = (set)  [flag]" in shown
    assert "interval_s = 30.0  [default]" in shown
    assert "s3cret" not in shown


def test_check_sends_nothing_and_keeps_nothing(agents: Agents, server: HeartbeatServer) -> None:
    shown = agents.check("--server", f"http://127.0.0.1:{server.port}")
    assert "none yet" in shown
    assert server.received == []
    assert not agents.state_dir.exists()


def test_affinity_lowers_what_is_available_and_not_the_hardware(agents: Agents) -> None:
    one = {min(os.sched_getaffinity(0))}
    metrics = heartbeat_of(agents.check(affinity=one))["resource_metrics"]
    assert metrics["cpu_cores_physical"] == physical_cores_by_cpuinfo()
    assert metrics["cpu_cores_available"] <= 1


def test_check_shows_the_gpus(agents: Agents, nvml: FakeNvml) -> None:
    nvml.say({**TITAN, "count": 2, "gpu1.total": 80 * GIB, "gpu1.free": 79 * GIB})
    shown = agents.check("--host-root", str(nvml.host_root), environment=nvml.environment)
    heartbeat = heartbeat_of(shown)
    assert [gpu["vram_available_gb"] for gpu in heartbeat["gpus"]] == [20.0, 79.0]
    metrics = heartbeat["resource_metrics"]
    assert (metrics["gpu_type"], metrics["gpu_vram_available_gb"]) == ("nvidia", 79.0)
    assert metrics["gpu_vram_total_gb"] == 80.0
    assert "NVIDIA Titan (GPU-gpu0-of-the-tests): 20.000 of 24.000 GiB free" in shown


def test_check_says_why_a_gpu_is_missing(agents: Agents, nvml: FakeNvml) -> None:
    nvml.say({"init": 9})
    shown = agents.check("--host-root", str(nvml.host_root), environment=nvml.environment)
    heartbeat = heartbeat_of(shown)
    assert heartbeat["resource_metrics"]["gpu_type"] == "none"
    assert heartbeat["resource_metrics"]["gpu_vram_total_gb"] == 0.0
    assert "Driver Not Loaded" in heartbeat["gpu_reason"]
    assert "figures are missing: nvidia: NVML: Driver Not Loaded" in shown


def test_a_wrong_setting_ends_it_with_78_and_a_reason(agents: Agents) -> None:
    with agents.start(free_port(), "--interval-s", "never") as agent:
        assert agent.process.wait(PATIENCE_S) == 78
        assert "flag: interval_s" in agent.output


@pytest.mark.parametrize("check", [[], ["--check"]], ids=["run", "check"])
def test_a_root_without_a_machine_ends_it_with_78_and_a_reason(agents: Agents, check: list[str]) -> None:
    with agents.start(free_port(), "--host-root", str(agents.folder / "nowhere"), *check) as agent:
        assert agent.process.wait(PATIENCE_S) == 78
        assert "host_root" in agent.output
        assert "Traceback" not in agent.output


def test_help_teaches() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "app", "agent", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for word in ("--check", "--busy-when", "install", "gateway", "/etc/headroom/agent.yml"):
        assert word in shown


# Life


def test_it_reports_keeps_its_name_and_says_goodbye(agents: Agents, server: HeartbeatServer) -> None:
    paths = set()
    for start in range(2):
        with agents.start(server.port, "--pool-name", "lab") as agent:
            before = len(server.received)
            until_sent(server, before + 3)
            assert agent.end() == 0
            agent.until_gone()
        paths |= {received.path for received in server.received}
        assert server.heartbeats[-1]["status"] == "offline"
        assert server.heartbeats[-1]["resource_metrics"] is None
        assert len({heartbeat["boot_id"] for heartbeat in server.heartbeats}) == start + 1
    assert len(paths) == 1
    assert {heartbeat["pool_name"] for heartbeat in server.heartbeats} == {"lab"}
    first_boot = [h["seq"] for h in server.heartbeats if h["boot_id"] == server.heartbeats[0]["boot_id"]]
    assert first_boot == list(range(1, len(first_boot) + 1))


def test_a_second_agent_is_refused(agents: Agents, server: HeartbeatServer) -> None:
    with agents.start(server.port):
        until_sent(server, 1)
        with agents.start(server.port) as second:
            assert second.process.wait(PATIENCE_S) == 78
            assert "Another agent" in second.output


def test_an_agent_that_never_arrived_ends_without_goodbye(agents: Agents) -> None:
    with agents.start(free_port()) as agent:
        agent.until_printed("not delivered")
        assert agent.end() == 0


def test_sigterm_ends_a_wait_for_a_silent_server(agents: Agents, server: HeartbeatServer) -> None:
    ended = threading.Event()

    def silent(_: Received) -> Reply:
        ended.wait()
        return Reply()

    server.reply = silent
    try:
        with agents.start(server.port, "--timeout-s", "60") as agent:
            until_sent(server, 1)
            # The goodbye, since the heartbeat may have been taken, has 3 s; the delivery under way had 60.
            assert agent.end(timeout_s=40) == 0
            assert server.heartbeats[-1]["status"] == "offline"
            agent.until_gone()
    finally:
        ended.set()


def test_a_flag_file_and_a_command_make_it_busy(agents: Agents, server: HeartbeatServer) -> None:
    flag = agents.folder / "gaming"
    with agents.start(server.port, "--busy-when", f"test -e {flag}"):
        until_sent(server, 1)
        assert "status" not in server.heartbeats[-1]
        flag.touch()
        wait_until(lambda: server.heartbeats[-1].get("status") == "busy", what="busy by command")
        flag.unlink()
        wait_until(lambda: "status" not in server.heartbeats[-1], what="not busy")
        (agents.state_dir / "busy").touch()
        wait_until(lambda: server.heartbeats[-1].get("status") == "busy", what="busy by file")


def test_systemd_hears_that_it_is_up_alive_and_ending(agents: Agents, server: HeartbeatServer) -> None:
    address = agents.folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(PATIENCE_S)
        with agents.start(server.port, environment={"NOTIFY_SOCKET": str(address)}) as agent:
            assert manager.recv(100) == b"READY=1\nWATCHDOG=1"
            assert manager.recv(100) == b"WATCHDOG=1"
            agent.end()
            said = [manager.recv(100)]
            while said[-1] != b"STOPPING=1":
                said.append(manager.recv(100))
            assert set(said[:-1]) <= {b"WATCHDOG=1"}


# Bad drivers


def descendants(agent: Headroom) -> list[psutil.Process]:
    return psutil.Process(agent.process.pid).children(recursive=True)


def test_heartbeats_go_on_through_hangs_crashes_and_errors(
    agents: Agents, server: HeartbeatServer, nvml: FakeNvml
) -> None:
    arguments = ("--host-root", str(nvml.host_root), "--gpu-deadline-s", "1", "--gpu-start-s", "1.5")

    def until_gpu_type(expected: str) -> dict[str, Any]:
        wait_until(
            lambda: server.heartbeats and server.heartbeats[-1]["resource_metrics"]["gpu_type"] == expected,
            what=f"gpu_type {expected}",
        )
        heartbeat: dict[str, Any] = server.heartbeats[-1]
        return heartbeat

    with agents.start(server.port, *arguments, environment=nvml.environment) as agent:
        assert until_gpu_type("nvidia")["resource_metrics"]["gpu_vram_available_gb"] == 20.0
        troubles: dict[str, tuple[dict[str, object], str]] = {
            "hang": ({"memory": "hang"}, "no answer within"),
            "crash": ({"memory": "crash"}, "SIGSEGV"),
            "off the bus": ({"gpu0.handle": 15}, "GPU is lost"),
            "driver gone": ({"init": 9, "get_count": 1}, "NVML"),
        }
        for name, (trouble, reason) in troubles.items():
            nvml.say({**TITAN, **trouble})
            heartbeat = until_gpu_type("none")
            metrics = heartbeat["resource_metrics"]
            assert (metrics["gpu_vram_total_gb"], metrics["gpu_vram_available_gb"]) == (0.0, 0.0), name
            assert "gpus" not in heartbeat, name
            assert reason in heartbeat["gpu_reason"], name
            until_sent(server, len(server.received) + 4)
            nvml.say(TITAN)
            assert "gpu_reason" not in until_gpu_type("nvidia"), name
            assert not [child for child in descendants(agent) if child.status() == psutil.STATUS_ZOMBIE]
            assert len(descendants(agent)) == 1, "no child of an earlier trouble is left"
        agent.end()
        agent.until_gone()


def test_a_killed_agent_leaves_no_child_not_even_one_that_hangs(
    agents: Agents, server: HeartbeatServer, nvml: FakeNvml
) -> None:
    arguments = ("--host-root", str(nvml.host_root), "--gpu-deadline-s", "30")
    with agents.start(server.port, *arguments, environment=nvml.environment) as agent:
        until_sent(server, 1)
        nvml.say({**TITAN, "memory": "hang"})
        time.sleep(2 * INTERVAL_S)
        assert len(agent.family()) == 2
        agent.end(signal.SIGKILL)
        agent.until_gone()


# Together with the rest


def test_through_a_gateway_to_the_api(agents: Agents, tmp_path: Path) -> None:
    port = free_port()
    with start_up(tmp_path / "data", "--no-agent") as headroom:
        headroom.until_ready()
        listen = ("--gateway-listen", f"127.0.0.1:{port}", "--gateway-token", "s3cret", "--gateway-batch-s", "0.2")
        with Headroom("agent", "gateway", "--server", headroom.url, *listen) as gateway:
            gateway.until_printed("Gateway on port")
            with agents.start(port, "--token", "s3cret", "--hostname", "behind-the-gateway") as agent:
                agent.until_printed("reports to")
                found = wait_until(lambda: headroom.get("/api/v1/agents").json(), what="the agent")
                assert [(one["hostname"], one["status"]) for one in found] == [("behind-the-gateway", "online")]
                assert found[0]["resource_metrics"]["cpu_cores_physical"] == physical_cores_by_cpuinfo()
                agent.end()
            capacity = f"/api/v1/agents/{found[0]['agent_id']}/capacity"
            wait_until(lambda: headroom.get(capacity).json()["status"] == "offline", what="its goodbye")
            assert gateway.end() == 0
