#!/usr/bin/env python3
"""An example planner: places tasks with nothing but the client, and waits where nothing fits.

    .venv/bin/python scripts/example_planner.py tasks.json
    [{"name": "train", "gpu_vram_gb": 16, "cpu_cores": 8}, {"name": "test", "depends_on": ["train"]}]

It starts nothing: a task "runs" for --task-s seconds. Like `POST /api/v1/plan` it counts what it placed itself,
since a report shows a task only once it runs; and the first task that fits nowhere keeps an agent for itself.
"""

import argparse
import heapq
import json
import time
from pathlib import Path
from typing import Any

from app.client import AvailableCapacity, CapacityClient

Task = dict[str, Any]
ARGUMENTS = {"gpu_vram_gb": "min_gpu_vram_gb", "cpu_cores": "min_cpu_cores", "memory_gb": "min_memory_gb"}


class Planner:
    def __init__(self, client: CapacityClient, tasks: list[Task], *, task_s: float) -> None:
        self.client, self.waiting, self.task_s = client, tasks, task_s
        self.running: list[tuple[float, str, str, Task]] = []
        self.done: set[str] = set()
        self.free: dict[str, tuple[float, int]] = {}

    def run(self) -> None:
        while self.waiting or self.running:
            self.place_all()
            if self.running:
                time.sleep(max(0.0, self.running[0][0] - time.monotonic()))
                self.end_one()
            else:
                self.wait(next(task for task in self.waiting if self.ready(task)))

    def place_all(self) -> None:
        kept: set[str] = set()
        for task in [task for task in self.waiting if self.ready(task)]:
            agent = self.best(task, kept)
            if agent is not None:
                self.waiting.remove(task)
                self.free.setdefault(agent.agent_id, (agent.gpu_vram_available_gb, agent.cpu_cores_available))
                heapq.heappush(self.running, (time.monotonic() + self.task_s, task["name"], agent.agent_id, task))
                print(f"{task['name']}: assigned to {agent.agent_id}", flush=True)

    def best(self, task: Task, kept: set[str]) -> AvailableCapacity | None:
        """The agent with the most room that fits; without one, the roomiest that is big enough is kept."""
        found = [one for one in self.client.find(**needs(task)) if one.agent_id not in kept]
        fitting = [one for one in found if fits(self.room(one), task)]
        if found and not fitting and not kept:
            kept.add(max(found, key=self.room).agent_id)
        return max(fitting, key=self.room, default=None)

    def room(self, agent: AvailableCapacity) -> tuple[float, int]:
        """What it reports, or what it had less what we have placed there: the smaller of the two."""
        reported = (agent.gpu_vram_available_gb, agent.cpu_cores_available)
        vram, cores = self.free.get(agent.agent_id, reported)
        ours = [task for _, _, agent_id, task in self.running if agent_id == agent.agent_id]
        vram -= sum(task.get("gpu_vram_gb", 0.0) for task in ours)
        return min(vram, reported[0]), min(cores - sum(task.get("cpu_cores", 1) for task in ours), reported[1])

    def wait(self, task: Task) -> None:
        """Nothing of ours runs: somebody else has to make room for the first task that could begin."""
        print(f"{task['name']}: pending_capacity", flush=True)
        if not self.client.find(**needs(task), limit=1, wait_s=60):
            why = self.client.explain(**needs(task))
            print(f"{task['name']}: still waits, {why.failing}, possible: {why.possible}", flush=True)

    def end_one(self) -> None:
        _, name, agent_id, _ = heapq.heappop(self.running)
        self.done.add(name)
        if all(other != agent_id for _, _, other, _ in self.running):
            del self.free[agent_id]
        print(f"{name}: completed", flush=True)

    def ready(self, task: Task) -> bool:
        return self.done.issuperset(task.get("depends_on", []))


def needs(task: Task) -> dict[str, Any]:
    return {ARGUMENTS.get(name, name): task[name] for name in task if name not in {"name", "depends_on"}}


def fits(room: tuple[float, int], task: Task) -> bool:
    return room[0] >= task.get("gpu_vram_gb", 0.0) and room[1] >= task.get("cpu_cores", 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Places the tasks of a JSON list with nothing but the client.")
    parser.add_argument("tasks", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the API, or redis:// for the index")
    parser.add_argument("--task-s", type=float, default=5.0, help="how long a task runs")
    chosen = parser.parse_args()
    with CapacityClient(chosen.url) as headroom:
        Planner(headroom, json.loads(chosen.tasks.read_text()), task_s=chosen.task_s).run()
