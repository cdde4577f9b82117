"""Plans as the record keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from sqlalchemy import Select, Text, cast, delete, exists, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import TooManyTasksError
from app.models.capacity import GpuType
from app.models.identity import AgentId
from app.models.plan import ENDED, OPEN, Amounts, Needs, Plan, PlanId, Task, TaskId, TaskStatus, settled
from app.record import rows
from app.record.bulk import Bulk
from app.record.connect import Database
from app.record.tables import agent_registry, plan_tasks, planner_state, plans
from app.service.ports import OpenTasks

_tasks: Final = plan_tasks.c
_GENERATION: Final = "assignments"
_THIN_SLICE: Final = 100
_THIN_SLICES: Final = 50
_COLUMNS: Final = (
    *(column for column in plan_tasks.columns if column.name not in {"depends_on", "queued_us"}),
    cast(_tasks.depends_on, Text).label("depends_on"),
)

_UNPLACED: Final = dict.fromkeys(
    ("agent_id", "free_gpu_vram_gb", "free_cpu_cores", "free_memory_gb", "assigned_at")
)

_encode = msgspec.json.Encoder().encode
_names = msgspec.json.Decoder(tuple[str, ...])


class RecordedPlans:
    """Implements PlanRecord."""

    def __init__(self, database: Database, bulk: Bulk) -> None:
        self._database = database
        self._bulk = bulk

    async def add(self, plan: Plan, *, most_open: int) -> None:
        async with self._database.writing() as connection:
            is_open = _tasks.status.in_([status.value for status in OPEN])
            opened = await connection.scalar(select(func.count()).select_from(plan_tasks).where(is_open))
            if (opened or 0) + len(plan.tasks) > most_open:
                raise TooManyTasksError
            queued_us = await _next_in_queue(connection, rows.us_of(plan.created_at))
            await connection.execute(insert(plans).values(plan_id=plan.plan_id, created_at=plan.created_at))
            await self._bulk.insert(
                connection, plan_tasks, [{**_row(task), "queued_us": queued_us} for task in plan.tasks]
            )

    async def plan(self, plan_id: PlanId) -> Plan | None:
        async with self._database.reading() as connection:
            created_at = await connection.scalar(select(plans.c.created_at).where(plans.c.plan_id == plan_id))
            if created_at is None:
                return None
            found = await connection.execute(_of_plan(plan_id))
            return Plan(plan_id=plan_id, created_at=created_at, tasks=[_task(row) for row in found])

    async def task(self, task_id: TaskId) -> Task | None:
        async with self._database.reading() as connection:
            row = (await connection.execute(select(*_COLUMNS).where(_tasks.task_id == task_id))).one_or_none()
        return None if row is None else _task(row)

    async def open_tasks(self) -> OpenTasks:
        async with self._database.reading() as connection:
            # First: whatever is assigned after this shows in the generation, if not in the lists.
            generation = await _generation(connection)
            lists = {
                status: [_task(row) for row in await connection.execute(_with_status(status))]
                for status in (TaskStatus.PENDING_CAPACITY, TaskStatus.ASSIGNED)
            }
        return OpenTasks(
            generation=generation, pending=lists[TaskStatus.PENDING_CAPACITY], assigned=lists[TaskStatus.ASSIGNED]
        )

    async def pending(self, *, limit: int) -> list[Task]:
        async with self._database.reading() as connection:
            found = await connection.execute(_with_status(TaskStatus.PENDING_CAPACITY).limit(limit))
            return [_task(row) for row in found]

    async def assign(self, tasks: Sequence[Task], *, generation: int) -> bool:
        async with self._database.writing() as connection:
            if generation == 0:
                first = {"name": _GENERATION, "generation": 0}
                await self._bulk.insert(connection, planner_state, [first])
            counted = await connection.execute(
                update(planner_state)
                .where(planner_state.c.name == _GENERATION, planner_state.c.generation == generation)
                .values(generation=generation + 1)
            )
            if not counted.rowcount:
                return False
            for task in tasks:
                await connection.execute(
                    update(plan_tasks)
                    .where(_tasks.task_id == task.task_id, _tasks.status == TaskStatus.PENDING_CAPACITY.value)
                    .values(_placed(task))
                )
        return True

    async def release_forgotten(self) -> int:
        gone = select(agent_registry.c.agent_id).where(agent_registry.c.forgotten_at.is_not(None))
        lost = (_tasks.status == TaskStatus.ASSIGNED.value) & _tasks.agent_id.in_(gone)
        async with self._database.reading() as connection:
            if await connection.scalar(select(_tasks.task_id).where(lost).limit(1)) is None:
                return 0
        async with self._database.writing() as connection:
            waiting = {**_UNPLACED, "status": TaskStatus.PENDING_CAPACITY.value}
            return (await connection.execute(update(plan_tasks).where(lost).values(waiting))).rowcount

    async def end(self, task_id: TaskId, status: TaskStatus, *, now: datetime) -> Task | None:
        async with self._database.writing() as connection:
            plan_id = await connection.scalar(select(_tasks.plan_id).where(_tasks.task_id == task_id))
            if plan_id is None:
                return None
            # Two tasks of a plan that end at once must not both believe that the other has not.
            await connection.execute(select(plans.c.plan_id).where(plans.c.plan_id == plan_id).with_for_update())
            tasks = {task.task_id: task for task in map(_task, await connection.execute(_of_plan(plan_id)))}
            task = tasks[task_id]
            unplaced = status is not TaskStatus.CANCELLED and task.status is not TaskStatus.ASSIGNED
            if task.status in ENDED or unplaced:
                return task
            task = tasks[task_id] = msgspec.structs.replace(task, status=status, ended_at=now)
            for changed in (task, *settled(tasks.values(), now)):
                await connection.execute(
                    update(plan_tasks)
                    .where(_tasks.task_id == changed.task_id)
                    .values(status=changed.status.value, ended_at=changed.ended_at)
                )
            return task


async def thin_plans(database: Database, *, before: datetime) -> int:
    """Deletes plans from before a moment of which everything has ended, in slices; returns how many tasks went."""
    unfinished = select(_tasks.task_id).where(
        _tasks.plan_id == plans.c.plan_id, _tasks.status.not_in([status.value for status in ENDED])
    )
    old = (
        select(plans.c.plan_id)
        .where(plans.c.created_at < before, ~exists(unfinished))
        .order_by(plans.c.created_at)
        .limit(_THIN_SLICE)
    )
    deleted = 0
    for _ in range(_THIN_SLICES):
        async with database.writing() as connection:
            ids = (await connection.scalars(old)).all()
            deleted += (await connection.execute(delete(plan_tasks).where(_tasks.plan_id.in_(ids)))).rowcount
            await connection.execute(delete(plans).where(plans.c.plan_id.in_(ids)))
        if len(ids) < _THIN_SLICE:
            break
    return deleted


async def _next_in_queue(connection: AsyncConnection, created_us: int) -> int:
    """Behind every open task, though the clock stood still or was set back since they came."""
    for status in OPEN:
        last_us = await connection.scalar(
            select(_tasks.queued_us)
            .where(_tasks.status == status.value)
            .order_by(_tasks.queued_us.desc())
            .limit(1)
        )
        created_us = max(created_us, 1 + (last_us or 0))
    return created_us


async def _generation(connection: AsyncConnection) -> int:
    found = await connection.scalar(select(planner_state.c.generation).where(planner_state.c.name == _GENERATION))
    return found or 0


def _of_plan(plan_id: str) -> Select[Any]:
    return select(*_COLUMNS).where(_tasks.plan_id == plan_id).order_by(_tasks.position)


def _with_status(status: TaskStatus) -> Select[Any]:
    order = (_tasks.queued_us, _tasks.plan_id, _tasks.position)
    return select(*_COLUMNS).where(_tasks.status == status.value).order_by(*order)


def _placed(task: Task) -> dict[str, Any]:
    free = task.free if task.free is not None else Amounts()
    placed = task.agent_id is not None
    return {
        "status": task.status.value,
        "agent_id": task.agent_id,
        "free_gpu_vram_gb": free.gpu_vram_gb if placed else None,
        "free_cpu_cores": free.cpu_cores if placed else None,
        "free_memory_gb": free.memory_gb if placed else None,
        "assigned_at": task.assigned_at,
    }


def _row(task: Task) -> dict[str, Any]:
    needs = task.needs
    return {
        **_placed(task),
        "task_id": task.task_id,
        "plan_id": task.plan_id,
        "position": task.position,
        "name": task.name,
        "agent_type": needs.agent_type,
        "pool_name": needs.pool_name,
        "gpu_type": None if needs.gpu_type is None else needs.gpu_type.value,
        "gpu_vram_gb": needs.amounts.gpu_vram_gb,
        "cpu_cores": needs.amounts.cpu_cores,
        "memory_gb": needs.amounts.memory_gb,
        "depends_on": _encode(task.depends_on).decode() if task.depends_on else None,
        "ended_at": task.ended_at,
    }


def _task(row: rows.AnyRow) -> Task:
    free = None
    if row.free_gpu_vram_gb is not None:
        free = Amounts(row.free_gpu_vram_gb, row.free_cpu_cores, row.free_memory_gb)
    return Task(
        task_id=TaskId(row.task_id),
        plan_id=PlanId(row.plan_id),
        position=row.position,
        name=row.name,
        needs=Needs(
            amounts=Amounts(row.gpu_vram_gb, row.cpu_cores, row.memory_gb),
            agent_type=row.agent_type,
            pool_name=row.pool_name,
            gpu_type=None if row.gpu_type is None else GpuType(row.gpu_type),
        ),
        depends_on=() if row.depends_on is None else _names.decode(row.depends_on),
        status=TaskStatus(row.status),
        agent_id=None if row.agent_id is None else AgentId(row.agent_id),
        free=free,
        assigned_at=row.assigned_at,
        ended_at=row.ended_at,
    )
