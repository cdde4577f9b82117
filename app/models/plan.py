"""Plans: tasks with their needs and dependencies, and what becomes of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Final, NewType

import msgspec

from app.models.capacity import GpuType
from app.models.identity import DEFAULT_AGENT_TYPE, AgentId

PlanId = NewType("PlanId", str)
TaskId = NewType("TaskId", str)
"""Both UUIDs in their canonical form."""


class TaskStatus(StrEnum):
    """`blocked` until all that the task depends on is completed; `skipped` once some of it never will be."""

    BLOCKED = "blocked"
    PENDING_CAPACITY = "pending_capacity"
    ASSIGNED = "assigned"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"


ENDED: Final = frozenset({TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED, TaskStatus.SKIPPED})
OPEN: Final = tuple(status for status in TaskStatus if status not in ENDED)


class Amounts(msgspec.Struct, frozen=True):
    """Of one agent, or of one task: memory of one GPU and main memory in GiB, and cores."""

    gpu_vram_gb: float = 0.0
    cpu_cores: int = 1
    memory_gb: float = 0.0


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """What a task needs of the one agent that it runs on."""

    amounts: Amounts = Amounts()
    agent_type: str = DEFAULT_AGENT_TYPE
    pool_name: str | None = None
    gpu_type: GpuType | None = None


class TaskRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A task as a planner asks for it; `depends_on` names others of the same plan."""

    name: str
    needs: Needs = Needs()
    depends_on: tuple[str, ...] = ()


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """One task of a plan.

    Attributes:
        position: its place in the plan.
        agent_id: where it runs or ran; None as long as it is not assigned.
        free: what the agent had free of all that we had placed there; with `agent_id`.
    """

    task_id: TaskId
    plan_id: PlanId
    position: int
    name: str
    needs: Needs
    depends_on: tuple[str, ...] = ()
    status: TaskStatus
    agent_id: AgentId | None = None
    free: Amounts | None = None
    assigned_at: datetime | None = None
    ended_at: datetime | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Tasks in the order they were asked for."""

    plan_id: PlanId
    created_at: datetime
    tasks: list[Task]


def unordered(tasks: Sequence[TaskRequest]) -> set[str]:
    """Names of the tasks that can never begin, because they depend on each other in a circle."""
    left = {task.name: set(task.depends_on) for task in tasks}
    while ready := [name for name, needed in left.items() if not needed & left.keys()]:
        for name in ready:
            del left[name]
    return set(left)


def settled(tasks: Iterable[Task], now: datetime) -> list[Task]:
    """The blocked tasks of a plan that are not any more, now that others have ended."""
    by_name: dict[str, Task] = {task.name: task for task in tasks}
    changed: dict[str, Task] = {}
    progress = True
    while progress:
        progress = False
        for task in tuple(by_name.values()):
            if task.status is not TaskStatus.BLOCKED:
                continue
            status = _status_after(task, by_name)
            if status is TaskStatus.BLOCKED:
                continue
            ended_at = now if status is TaskStatus.SKIPPED else None
            by_name[task.name] = changed[task.name] = msgspec.structs.replace(
                task, status=status, ended_at=ended_at
            )
            progress = True
    return list(changed.values())


def _status_after(task: Task, by_name: Mapping[str, Task]) -> TaskStatus:
    needed = [by_name[name].status for name in task.depends_on]
    if any(status in ENDED and status is not TaskStatus.COMPLETED for status in needed):
        return TaskStatus.SKIPPED
    if all(status is TaskStatus.COMPLETED for status in needed):
        return TaskStatus.PENDING_CAPACITY
    return TaskStatus.BLOCKED
