"""Plans in the record, on both databases: order, generations, ends, and their own end."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest

from app.errors import TooManyTasksError
from app.models.capacity import GpuType
from app.models.identity import AgentId
from app.models.plan import Amounts, Needs, Plan, PlanId, Task, TaskId, TaskStatus
from app.record import Record
from tests.indexing import agent_id, heartbeat
from tests.logs import beat, moment

YEAR_S = 366 * 86_400
FREE = Amounts(24.0, 16, 64.0)


def plan_of(number: int, *tasks: Task, at_s: float = 0.0) -> Plan:
    return Plan(
        plan_id=plan_id(number), created_at=moment(at_s) + timedelta(microseconds=number), tasks=list(tasks)
    )


async def add(record: Record, plan: Plan) -> None:
    await record.plans.add(plan, most_open=100)


def plan_id(number: int) -> PlanId:
    return PlanId(agent_id(1000 + number))


def task(plan: int, position: int, *after: str, status: TaskStatus = TaskStatus.PENDING_CAPACITY) -> Task:
    return Task(
        task_id=TaskId(agent_id(100 * plan + position)),
        plan_id=plan_id(plan),
        position=position,
        name=f"t{position}",
        needs=Needs(amounts=Amounts(8.5, 4, 2.25), agent_type="infra", pool_name="a", gpu_type=GpuType.AMD),
        depends_on=after,
        status=TaskStatus.BLOCKED if after else status,
    )


def assigned(one: Task, agent: AgentId) -> Task:
    return Task(
        task_id=one.task_id,
        plan_id=one.plan_id,
        position=one.position,
        name=one.name,
        needs=one.needs,
        depends_on=one.depends_on,
        status=TaskStatus.ASSIGNED,
        agent_id=agent,
        free=FREE,
        assigned_at=moment(1),
    )


async def test_a_plan_comes_back_as_it_was(record: Record) -> None:
    plan = plan_of(1, task(1, 0), task(1, 1, "t0"))
    await add(record, plan)
    assert await record.plans.plan(plan.plan_id) == plan
    assert await record.plans.task(plan.tasks[1].task_id) == plan.tasks[1]
    assert await record.plans.plan(plan_id(9)) is None
    assert await record.plans.task(TaskId(agent_id(9))) is None


async def test_who_came_first_comes_first_even_if_the_clock_stood_still_or_went_back(record: Record) -> None:
    order = (3, 1, 4, 2)
    for number, at_s in zip(order, (60.0, 60.0, 0.0, 30.0), strict=True):
        made = plan_of(number, task(number, 0), task(number, 1), task(number, 2, "t0"))
        await add(record, msgspec.structs.replace(made, created_at=moment(at_s)))
    opened = await record.plans.open_tasks()
    assert [(one.plan_id, one.position) for one in opened.pending] == [
        (plan_id(number), position) for number in order for position in (0, 1)
    ]
    assert (opened.generation, opened.assigned) == (0, [])


async def test_an_assignment_that_is_out_of_date_is_not_kept(record: Record) -> None:
    first, second = task(1, 0), task(1, 1)
    await add(record, plan_of(1, first, second))
    seen = await record.plans.open_tasks()
    assert await record.plans.assign([assigned(first, agent_id(1))], generation=seen.generation)
    assert not await record.plans.assign([assigned(second, agent_id(1))], generation=seen.generation)
    now = await record.plans.open_tasks()
    assert [one.task_id for one in now.pending] == [second.task_id]
    assert now.assigned == [assigned(first, agent_id(1))]
    assert now.generation > seen.generation
    assert await record.plans.assign([assigned(second, agent_id(2))], generation=now.generation)


async def test_a_task_that_has_ended_meanwhile_is_not_assigned(record: Record) -> None:
    one = task(1, 0)
    await add(record, plan_of(1, one))
    await record.plans.end(one.task_id, TaskStatus.CANCELLED, now=moment(2))
    assert await record.plans.assign([assigned(one, agent_id(1))], generation=0)
    found = await record.plans.task(one.task_id)
    assert found is not None
    assert (found.status, found.agent_id, found.ended_at) == (TaskStatus.CANCELLED, None, moment(2))


async def test_what_depends_on_an_end_goes_on_in_the_same_transaction(record: Record) -> None:
    tasks = [task(1, 0), task(1, 1, "t0"), task(1, 2, "t0", "t1"), task(1, 3, "t2")]
    await add(record, plan_of(1, *tasks))
    await record.plans.assign([assigned(tasks[0], agent_id(1))], generation=0)
    await record.plans.end(tasks[0].task_id, TaskStatus.COMPLETED, now=moment(2))
    assert await statuses(record) == ["completed", "pending_capacity", "blocked", "blocked"]
    await record.plans.end(tasks[1].task_id, TaskStatus.CANCELLED, now=moment(3))
    assert await statuses(record) == ["completed", "cancelled", "skipped", "skipped"]


async def statuses(record: Record) -> list[str]:
    plan = await record.plans.plan(plan_id(1))
    assert plan is not None
    return [one.status.value for one in plan.tasks]


async def test_old_plans_go_once_everything_of_them_has_ended(record: Record) -> None:
    for number in range(1, 4):
        await add(record, plan_of(number, task(number, 0), task(number, 1), at_s=number * 10))
    await add(record, plan_of(4, task(4, 0), at_s=YEAR_S))
    for number, position in ((1, 0), (1, 1), (2, 0), (4, 0)):
        await record.plans.end(task(number, position).task_id, TaskStatus.CANCELLED, now=moment(50))
    await record.writer.write([beat(0, heartbeat(1))])
    assert await record.writer.thin() == 0
    await record.writer.write([beat(YEAR_S + 100, heartbeat(1))])
    assert await record.writer.thin() >= 2
    assert await record.plans.plan(plan_id(1)) is None
    assert await record.plans.task(task(1, 0).task_id) is None
    assert [(await record.plans.plan(plan_id(number))) is None for number in (2, 3, 4)] == [False, False, False]


async def test_no_more_tasks_are_taken_than_may_be_open(record: Record) -> None:
    await record.plans.add(plan_of(1, task(1, 0), task(1, 1, "t0")), most_open=3)
    with pytest.raises(TooManyTasksError):
        await record.plans.add(plan_of(2, task(2, 0), task(2, 1)), most_open=3)
    assert await record.plans.plan(plan_id(2)) is None
    await record.plans.end(task(1, 0).task_id, TaskStatus.CANCELLED, now=moment(1))
    await record.plans.add(plan_of(2, task(2, 0), task(2, 1)), most_open=3)


async def test_what_was_assigned_to_a_forgotten_agent_waits_again_in_its_old_place(record: Record) -> None:
    await record.writer.write([beat(0, heartbeat(1)), beat(0, heartbeat(2), n=1)])
    await add(record, plan_of(1, task(1, 0), task(1, 1), task(1, 2)))
    await add(record, plan_of(2, task(2, 0)))
    placed = [assigned(task(1, position), agent_id(agent)) for position, agent in ((0, 1), (1, 2), (2, 1))]
    await record.plans.assign(placed, generation=0)
    await record.plans.end(task(1, 2).task_id, TaskStatus.COMPLETED, now=moment(1))
    assert await record.plans.release_forgotten() == 0
    assert await record.agents.forget(agent_id(1), position=None)
    assert await record.plans.release_forgotten() == 1
    assert await record.plans.release_forgotten() == 0
    opened = await record.plans.open_tasks()
    assert opened.pending == [task(1, 0), task(2, 0)]
    assert opened.assigned == [placed[1]]
