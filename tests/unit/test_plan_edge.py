"""Plans at the HTTP edge, over a record that is a dictionary and a fleet that a test invents."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from app.errors import RecordUnavailableError, TooManyTasksError
from app.models.capacity import CapacityPage
from app.models.plan import Needs, Plan, PlanId, Task, TaskId, TaskRequest, TaskStatus, unordered
from app.service.ports import OpenTasks
from tests.indexing import agent_id
from tests.mock_ports import Ports

TASK = f"/api/v1/status/{agent_id(7)}"


@pytest.fixture
def ports() -> Ports:
    """Nothing is free anywhere."""
    ports = Ports()
    kept: dict[str, Plan] = {}

    async def add(plan: Plan, *, most_open: int) -> None:
        if sum(len(one.tasks) for one in [plan, *kept.values()]) > most_open:
            raise TooManyTasksError
        kept[plan.plan_id] = plan

    async def get(plan_id: str) -> Plan | None:
        return kept.get(plan_id)

    ports.plans.add.side_effect = add
    ports.plans.plan.side_effect = get
    ports.plans.task.return_value = None
    ports.plans.open_tasks.return_value = OpenTasks(generation=0, pending=[], assigned=[])
    ports.index.find.return_value = CapacityPage(agents=[])
    return ports


def some_task(status: TaskStatus) -> Task:
    return Task(
        task_id=TaskId(agent_id(7)),
        plan_id=PlanId(agent_id(8)),
        position=0,
        name="a",
        needs=Needs(),
        status=status,
        agent_id=agent_id(1),
        ended_at=datetime(2027, 1, 1, tzinfo=UTC),
    )


async def test_a_plan_is_kept_and_can_be_asked_for(ports: Ports) -> None:
    tasks = [
        {
            "name": "train",
            "gpu_vram_gb": 16,
            "cpu_cores": 8,
            "memory_gb": 32.5,
            "pool_name": "a",
            "gpu_type": "amd",
        },
        {"name": "test", "agent_type": "infra", "depends_on": ["train", "train"]},
    ]

    response = await ports.call("POST", "/api/v1/plan", json={"tasks": tasks})

    assert response.status_code == 201
    plan = response.json()
    first, second = plan["tasks"]
    assert {name: first[name] for name in ("name", "status", "agent_id", "gpu_vram_gb", "cpu_cores")} == {
        "name": "train",
        "status": "pending_capacity",
        "agent_id": None,
        "gpu_vram_gb": 16.0,
        "cpu_cores": 8,
    }
    assert (first["memory_gb"], first["pool_name"], first["gpu_type"]) == (32.5, "a", "amd")
    assert (second["status"], second["depends_on"], second["agent_type"]) == ("blocked", ["train"], "infra")
    assert (await ports.call("GET", f"/api/v1/plan/{plan['plan_id']}")).json() == plan


async def test_a_request_is_a_plan_of_one_task(ports: Ports) -> None:
    response = await ports.call("POST", "/api/v1/request", json={"gpu_vram_gb": 8})

    assert response.status_code == 201
    task = response.json()
    assert (task["name"], task["status"], task["gpu_vram_gb"]) == ("task", "pending_capacity", 8.0)
    plan = await ports.call("GET", f"/api/v1/plan/{task['plan_id']}")
    assert plan.json()["tasks"] == [task]


async def test_a_task_ends(ports: Ports) -> None:
    ports.plans.end.return_value = some_task(TaskStatus.COMPLETED)

    response = await ports.call("PATCH", TASK, json={"status": "completed"})

    assert (response.status_code, response.json()["status"]) == (200, "completed")
    response = await ports.call("PATCH", TASK, json={"status": "failed"})
    assert (response.status_code, response.json()["code"]) == (409, "task_state")
    ports.plans.end.return_value = None
    response = await ports.call("PATCH", TASK, json={"status": "failed"})
    assert (response.status_code, response.json()["code"]) == (404, "task_not_found")


@pytest.mark.parametrize(
    ("target", "code"),
    [
        (f"/api/v1/plan/{agent_id(9)}", "plan_not_found"),
        ("/api/v1/plan/9", "plan_not_found"),
        (f"/api/v1/status/{agent_id(9)}", "task_not_found"),
        ("/api/v1/status/x%0a", "invalid_path"),
        ("/api/v1/status/x", "task_not_found"),
    ],
)
async def test_what_is_not_there(ports: Ports, target: str, code: str) -> None:
    response = await ports.call("GET", target)

    assert (response.status_code, response.json()["code"]) == (400 if code == "invalid_path" else 404, code)


async def test_without_the_record_there_is_no_plan(ports: Ports) -> None:
    ports.plans.add.side_effect = RecordUnavailableError()

    response = await ports.call("POST", "/api/v1/plan", json={"tasks": [{"name": "a"}]})

    assert (response.status_code, response.json()["code"]) == (503, "record_unavailable")


def named(*names: str) -> dict[str, Any]:
    return {"tasks": [{"name": name} for name in names]}


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({}, "tasks", "missing"),
        ({"tasks": []}, "tasks", "length"),
        (named(*map(str, range(1001))), "tasks", "length"),
        (named("a", "a"), "body", "repeated"),
        ({"tasks": [{}]}, "tasks[0].name", "missing"),
        ({"tasks": [{"name": ""}]}, "tasks[0].name", "length"),
        ({"tasks": [{"name": "a", "gpu_vram": 4}]}, "tasks[0]", "unknown_field"),
        ({"tasks": [{"name": "a", "gpu_vram_gb": -1}]}, "tasks[0].gpu_vram_gb", "out_of_range"),
        ({"tasks": [{"name": "a", "gpu_vram_gb": "4"}]}, "tasks[0].gpu_vram_gb", "type"),
        ({"tasks": [{"name": "a", "cpu_cores": 1.5}]}, "tasks[0].cpu_cores", "type"),
        ({"tasks": [{"name": "a", "cpu_cores": 65537}]}, "tasks[0].cpu_cores", "out_of_range"),
        ({"tasks": [{"name": "a", "gpu_type": "cuda"}]}, "tasks[0].gpu_type", "choice"),
        ({"tasks": [{"name": "a", "agent_type": "Desktop"}]}, "tasks[0].agent_type", "pattern"),
        ({"tasks": [{"name": "a", "depends_on": "a"}]}, "tasks[0].depends_on", "type"),
        ({"tasks": [{"name": "a", "depends_on": ["b"]}]}, "body", "unknown_task"),
        ({"tasks": [{"name": "a", "depends_on": ["a"]}]}, "body", "circular"),
        (
            {"tasks": [{"name": "a", "depends_on": ["b"]}, {"name": "b", "depends_on": ["a"]}]},
            "body",
            "circular",
        ),
        ({"tasks": [{"name": "a"}], "priority": 1}, "body", "unknown_field"),
    ],
)
async def test_a_faulty_plan_names_its_field(ports: Ports, body: Any, field: str, code: str) -> None:
    response = await ports.call(
        "POST", "/api/v1/plan", content=msgspec.json.encode(body), headers={"content-type": "application/json"}
    )

    assert response.status_code == 422
    (fault,) = response.json()["errors"]
    assert (fault["field"], fault["code"]) == (field, code)
    ports.plans.add.assert_not_awaited()


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({}, "status", "missing"),
        ({"status": "assigned"}, "status", "choice"),
        ({"status": None}, "status", "choice"),
        ({"status": "failed", "reason": "x"}, "body", "unknown_field"),
    ],
)
async def test_a_faulty_end_names_its_field(ports: Ports, body: Any, field: str, code: str) -> None:
    response = await ports.call("PATCH", TASK, json=body)

    assert response.status_code == 422
    (fault,) = response.json()["errors"]
    assert (fault["field"], fault["code"]) == (field, code)


def test_circles_are_found_wherever_they_are() -> None:
    def tasks(**needed: str) -> list[TaskRequest]:
        return [TaskRequest(name=name, depends_on=tuple(after)) for name, after in needed.items()]

    assert unordered(tasks(a="", b="a", c="ab", d="c")) == set()
    assert unordered(tasks(a="", b="ac", c="b", d="c", e="a")) == {"b", "c", "d"}


async def test_a_plan_too_many_is_refused_and_may_be_sent_again() -> None:
    ports = Ports(max_open_tasks=2)
    ports.plans.add.side_effect = TooManyTasksError()
    refused = await ports.call("POST", "/api/v1/plan", json={"tasks": [{"name": "a"}]})
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_tasks")
    assert refused.headers["retry-after"]
    assert ports.plans.add.await_args.kwargs == {"most_open": 2}
