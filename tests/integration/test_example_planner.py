"""The example planner against a real API: everything is placed, in order, and nothing twice."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.indexing import agent_id
from tests.planning import api, fill, machine, report

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "example_planner.py"


def start(tmp_path: Path, url: str, tasks: list[dict[str, object]]) -> subprocess.Popen[str]:
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps(tasks))
    return subprocess.Popen(
        [sys.executable, SCRIPT, path, "--url", url, "--task-s", "0.05"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_it_is_short() -> None:
    source = SCRIPT.read_text()
    assert len(source.splitlines()) < 100
    assert set(re.findall(r"^from (app\S*) import", source, re.MULTILINE)) == {"app.client"}


@pytest.mark.parametrize("way", ["redis", "http"])
def test_tasks_run_in_order_without_booking_anything_twice(
    redis_url: str, sqlite_record_url: str, tmp_path: Path, way: str
) -> None:
    fill(redis_url, heartbeats=[machine(1, 24.0, 8), machine(2, 16.0, 8)])
    tasks: list[dict[str, object]] = [{"name": f"t{n}", "gpu_vram_gb": 10, "cpu_cores": 2} for n in range(6)]
    tasks[3]["depends_on"] = ["t0", "t5"]
    with api(redis_url, sqlite_record_url) as url:
        planner = start(tmp_path, {"redis": redis_url, "http": url}[way], tasks)
        output, _ = planner.communicate(timeout=60)
    assert planner.returncode == 0, output
    running: dict[str, str] = {}
    done: list[str] = []
    for line in output.splitlines():
        name, _, what = line.partition(": ")
        if what.startswith("assigned"):
            running[name] = what.split()[-1]
            assert list(running.values()).count(agent_id(1)) <= 2
            assert list(running.values()).count(agent_id(2)) <= 1
        elif what == "completed":
            del running[name]
            done.append(name)
    assert sorted(done) == [f"t{n}" for n in range(6)]
    assert done.index("t3") == 5
    assert output.startswith(f"t0: assigned to {agent_id(1)}\nt1: assigned to {agent_id(2)}\n")


def test_it_waits_for_what_is_too_large_now(redis_url: str, sqlite_record_url: str, tmp_path: Path) -> None:
    fill(redis_url, heartbeats=[machine(1, 4.0, 8)])
    with api(redis_url, sqlite_record_url) as url:
        planner = start(tmp_path, url, [{"name": "large", "gpu_vram_gb": 20}])
        assert planner.stdout is not None
        assert planner.stdout.readline() == "large: pending_capacity\n"
        report(redis_url, machine(1, 24.0, 8))
        output, _ = planner.communicate(timeout=60)
    assert output == f"large: assigned to {agent_id(1)}\nlarge: completed\n"
