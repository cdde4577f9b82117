"""What the agent costs the machine it runs on: memory, CPU time a heartbeat, bytes a heartbeat.

Starts the real `headroom agent` against a server of its own, without GPUs and with a fake NVIDIA driver, and exits
with 1 when it is above its limits.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import psutil

from tests.fake_nvml import build_library, fake_host
from tests.heartbeat_server import HeartbeatServer, Reply, heartbeat_server
from tests.servers import wait_until

ROOT: Final = Path(__file__).resolve().parent.parent
MOST_PSS_MB: Final = 45.0
MOST_PSS_WITH_GPU_LIBRARY_MB: Final = 70.0
MOST_CPU_SHARE: Final = 0.001
DEFAULT_INTERVAL_S: Final = 30.0
_MB: Final = 1e6
# The first heartbeats load what is loaded once.
_WARM_UP: Final = 5


class Footprint(NamedTuple):
    """Of the agent and all that it started. MB are 10^6 bytes; `*_bytes` are those of one heartbeat."""

    processes: int
    pss_mb: float
    rss_mb: float
    cpu_ms: float
    idle_cpu_ms: float
    body_bytes: int
    request_bytes: int

    @property
    def cpu_share(self) -> float:
        """Of one core at the default interval: a heartbeat, and what waiting for the next one costs."""
        return (self.cpu_ms / 1000 + self.idle_cpu_ms / 1000) / DEFAULT_INTERVAL_S


def measure(arguments: list[str], environment: Mapping[str, str], *, heartbeats: int) -> Footprint:
    """Runs the agent at a short interval for so many heartbeats, and then lets it wait."""
    with tempfile.TemporaryDirectory() as state, heartbeat_server() as server:
        server.reply = lambda _: Reply(body={"stream_id": "1-0", "next_heartbeat_s": 0.2})
        settings = ["--server", f"http://127.0.0.1:{server.port}", "--interval-s", "0.2", "--state-dir", state]
        command = [sys.executable, "-P", "-m", "app", "agent", *settings, *arguments]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADROOM_")}
        own = {"PYTHONPATH": str(ROOT), "HOME": state, **environment}
        with subprocess.Popen(command, cwd=state, env={**kept, **own}) as process:
            try:
                return _watch(psutil.Process(process.pid), server, heartbeats)
            finally:
                process.terminate()


def _watch(agent: psutil.Process, server: HeartbeatServer, heartbeats: int) -> Footprint:
    wait_until(lambda: len(server.received) >= _WARM_UP, timeout_s=60, what="the first heartbeats")
    started, sent = cpu_s(agent), len(server.received)
    wait_until(lambda: len(server.received) >= sent + heartbeats, timeout_s=600, what="the heartbeats")
    server.reply = lambda _: Reply(body={"stream_id": "1-0", "next_heartbeat_s": DEFAULT_INTERVAL_S})
    cpu_ms = (cpu_s(agent) - started) * 1000 / (len(server.received) - sent)
    count = len(server.received)
    wait_until(lambda: len(server.received) > count, what="the last heartbeat")
    idle_from = cpu_s(agent)
    idle_s = 12.0
    try:
        agent.wait(idle_s)
    except psutil.TimeoutExpired:
        idle_ms = (cpu_s(agent) - idle_from) * 1000 * DEFAULT_INTERVAL_S / idle_s
    else:
        raise AssertionError("the agent ended")
    everybody = [agent, *agent.children(recursive=True)]
    last = server.received[-1]
    body = len(msgspec.msgpack.encode(last.heartbeat))
    head = len(f"POST {last.path} HTTP/1.1\r\n\r\n") + sum(len(f"{n}: {v}\r\n") for n, v in last.headers.items())
    memory = [process.memory_full_info() for process in everybody]
    return Footprint(
        processes=len(everybody),
        pss_mb=sum(one.pss for one in memory) / _MB,
        rss_mb=sum(one.rss for one in memory) / _MB,
        cpu_ms=cpu_ms,
        idle_cpu_ms=idle_ms,
        body_bytes=body,
        request_bytes=head + body,
    )


def cpu_s(agent: psutil.Process) -> float:
    """CPU time of the agent and its children, those that ended included."""
    own = agent.cpu_times()
    total = own.user + own.system + own.children_user + own.children_system
    for child in agent.children(recursive=True):
        times = child.cpu_times()
        total += times.user + times.system
    return total


def measure_both(heartbeats: int) -> dict[str, tuple[Footprint, float]]:
    """What was measured, with its limit in MB, by what the machine has."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        fake = fake_host(Path(folder) / "host", build_library(Path(folder)))
        host = ["--host-root", str(fake.host_root)]
        with_gpu = pool.submit(measure, host, fake.environment, heartbeats=heartbeats)
        without = pool.submit(measure, ["--gpu", ""], {}, heartbeats=heartbeats)
        return {
            "no GPU": (without.result(), MOST_PSS_MB),
            "NVIDIA (fake library)": (with_gpu.result(), MOST_PSS_WITH_GPU_LIBRARY_MB),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heartbeats", type=int, default=100, help="how many to measure over")
    failed = False
    lines = [
        f"{'':24}{'processes':>10}{'PSS MB':>9}{'limit':>7}{'RSS MB':>8}{'CPU ms':>8}{'core':>9}{'bytes':>12}"
    ]
    for name, (found, limit_mb) in measure_both(parser.parse_args().heartbeats).items():
        over = found.pss_mb >= limit_mb or found.cpu_share >= MOST_CPU_SHARE
        failed = failed or over
        lines.append(
            f"{name:24}{found.processes:>10}{found.pss_mb:>9.1f}{limit_mb:>7.0f}{found.rss_mb:>8.1f}"
            f"{found.cpu_ms:>8.2f}{found.cpu_share:>9.4%}{f'{found.body_bytes}/{found.request_bytes}':>12}"
            + ("  ABOVE ITS LIMIT" if over else "")
        )
    lines += [
        "PSS and RSS: all processes of the agent. CPU ms: one heartbeat.",
        f"core: share of one core at {DEFAULT_INTERVAL_S:g} s, waiting included; the limit: {MOST_CPU_SHARE:.1%}.",
        "bytes: body, and whole request, of one heartbeat.",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
