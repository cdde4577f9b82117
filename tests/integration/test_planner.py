"""The planner over a real index and record: who gets what, in which order, and through a restart of everything."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any
from unittest.mock import AsyncMock

import pytest

from app.api.wiring import wire
from app.errors import IndexUnavailableError, PlanNotFoundError, TaskNotFoundError, TaskStateError
from app.index.clock import ManualClock
from app.models.capacity import AgentStatus, GpuType
from app.models.heartbeat import Heartbeat, ResourceMetrics
from app.models.plan import Amounts, Needs, Plan, PlanId, Task, TaskId, TaskRequest, TaskStatus
from app.record import open_record
from app.service.planner import WorkPlanner
from app.settings import Settings
from app.telemetry import TASKS_PENDING, TASKS_PENDING_VRAM_BYTES
from tests.indexing import agent_id, heartbeat, index_settings, opened_index
from tests.logs import START_MS
from tests.stack import Stack
from workers.rebuild import Rebuild


class Planning(Stack):
    """With a planner whose passes the test makes."""

    @property
    def planner(self) -> WorkPlanner:
        if not hasattr(self, "_planner"):
            self._planner = wire(self.settings, self.ports_over(self.index.capacity)).planner
        return self._planner


@pytest.fixture
def settings(redis_url: str, sqlite_record_url: str) -> Settings:
    return index_settings(redis_url, database_url=sqlite_record_url)


@asynccontextmanager
async def planning_over(settings: Settings, clock: ManualClock, *, fresh: bool = True) -> AsyncIterator[Planning]:
    async with opened_index(settings, clock=clock, epoch=fresh) as index:
        record = open_record(settings)
        try:
            yield Planning(index, record, settings, clock)
        finally:
            await record.close()


@pytest.fixture
async def planning(settings: Settings) -> AsyncIterator[Planning]:
    async with planning_over(settings, ManualClock(START_MS)) as stack:
        yield stack


def machine(number: int, vram: float = 24.0, cores: int = 16, memory: float = 64.0, **fields: Any) -> Heartbeat:
    metrics = ResourceMetrics(
        gpu_vram_available_gb=vram,
        gpu_vram_total_gb=fields.pop("gpu_vram_total_gb", 24.0),
        cpu_cores_available=cores,
        cpu_cores_physical=16,
        memory_available_gb=memory,
        memory_percent=fields.pop("memory_percent", None),
        gpu_type=GpuType.NVIDIA,
    )
    return heartbeat(number, resource_metrics=metrics, **fields)


names = count(1)


def task(
    vram: float, cores: int = 1, memory: float = 0.0, *after: str, name: str = "", **needs: Any
) -> TaskRequest:
    amounts = Amounts(vram, cores, memory)
    return TaskRequest(name=name or f"task {next(names)}", needs=Needs(amounts=amounts, **needs), depends_on=after)


def where(plan: Plan) -> list[int | None]:
    return [None if one.agent_id is None else int(one.agent_id[-12:], 16) for one in plan.tasks]


def statuses(plan: Plan) -> list[str]:
    return [one.status.value for one in plan.tasks]


async def again(planning: Planning, plan: Plan) -> Plan:
    await planning.planner.assign()
    return await planning.planner.plan(plan.plan_id)


async def test_each_task_goes_to_the_agent_with_the_most_free_vram_that_fits(planning: Planning) -> None:
    await planning.report(machine(1, 10.0), machine(2, 24.0), machine(3, 20.0, 2))
    plan = await planning.planner.generate_plan([task(8.0), task(8.0), task(8.0), task(6.0, 8), task(4.0)])
    # 24, 20 and 24 - 8 GB are the most at each turn; then 10, since agent 2 has 8 left and agent 3 too few cores.
    assert where(plan) == [2, 3, 2, 1, 3]


async def test_metrics_say_how_much_gpu_memory_is_waited_for(planning: Planning) -> None:
    plan = await planning.planner.generate_plan([task(8.0), task(16.5)])
    assert (TASKS_PENDING._value.get(), TASKS_PENDING_VRAM_BYTES._value.get()) == (2, 24.5 * 2**30)
    await planning.report(machine(1, 8.0))
    assert where(await again(planning, plan)) == [1, None]
    assert (TASKS_PENDING._value.get(), TASKS_PENDING_VRAM_BYTES._value.get()) == (1, 16.5 * 2**30)


async def test_tasks_of_a_plan_do_not_book_each_others_share(planning: Planning) -> None:
    await planning.report(machine(1, 24.0, cores=4, memory=10.0))
    plan = await planning.planner.generate_plan(
        [task(10.0, 1, 4.0), task(10.0, 1, 4.0), task(4.0, 1, 4.0), task(1.0, 3)]
    )
    assert statuses(plan) == ["assigned", "assigned", "pending_capacity", "pending_capacity"]
    other = await planning.planner.generate_plan([task(6.0)])
    assert statuses(other) == ["pending_capacity"]


async def test_what_a_report_shows_already_is_not_taken_twice(planning: Planning) -> None:
    await planning.report(machine(1, 24.0))
    first = await planning.planner.generate_plan([task(10.0)])
    await planning.report(machine(1, 14.0, 15))
    assert where(await planning.planner.generate_plan([task(14.0)])) == [1]
    await planning.report(machine(1, 4.0, 15))
    assert where(await planning.planner.generate_plan([task(1.0)])) == [None]
    await planning.planner.end(first.tasks[0].task_id, TaskStatus.COMPLETED)
    assert len(await planning.planner.assign()) == 1


async def test_needs_beyond_memory_of_gpu_and_cores_are_met(planning: Planning) -> None:
    await planning.report(
        machine(1, pool_name="a"), machine(2, memory=8.0), machine(3, agent_type="infra"), heartbeat(4, vram=24.0)
    )
    plan = await planning.planner.generate_plan(
        [
            task(1.0, pool_name="a"),
            task(1.0, 1, 32.0, pool_name="default"),
            task(1.0, agent_type="infra"),
            task(1.0, gpu_type=GpuType.AMD),
            task(1.0, 1, 8.0, pool_name="default"),
        ]
    )
    assert where(plan) == [1, None, 3, None, 2]


async def test_what_is_not_placeable_gets_nothing(planning: Planning) -> None:
    await planning.report(machine(1, status=AgentStatus.BUSY))
    plan = await planning.planner.generate_plan([task(1.0)])
    assert statuses(plan) == ["pending_capacity"]
    await planning.report(machine(1))
    assert where(await again(planning, plan)) == [1]


async def test_dependencies_come_first_and_a_failure_skips_what_needs_it(planning: Planning) -> None:
    await planning.report(machine(1))
    plan = await planning.planner.generate_plan(
        [
            task(1.0, 1, 0.0, "b", name="a"),
            task(1.0, name="b"),
            task(1.0, 1, 0.0, "a", "b", name="c"),
            task(1.0, 1, 0.0, "c", name="d"),
        ]
    )
    assert statuses(plan) == ["blocked", "assigned", "blocked", "blocked"]
    by_name = {one.name: one.task_id for one in plan.tasks}
    await planning.planner.end(by_name["b"], TaskStatus.COMPLETED)
    plan = await again(planning, plan)
    assert statuses(plan) == ["assigned", "completed", "blocked", "blocked"]
    await planning.planner.end(by_name["a"], TaskStatus.FAILED)
    plan = await again(planning, plan)
    assert statuses(plan) == ["failed", "completed", "skipped", "skipped"]


async def test_an_end_is_said_once_and_may_be_repeated(planning: Planning) -> None:
    await planning.report(machine(1))
    plan = await planning.planner.generate_plan([task(1.0), task(99.0)])
    placed, pending = plan.tasks
    for _ in range(2):
        assert (await planning.planner.end(placed.task_id, TaskStatus.COMPLETED)).status is TaskStatus.COMPLETED
    with pytest.raises(TaskStateError):
        await planning.planner.end(placed.task_id, TaskStatus.FAILED)
    with pytest.raises(TaskStateError):
        await planning.planner.end(pending.task_id, TaskStatus.COMPLETED)
    assert (await planning.planner.end(pending.task_id, TaskStatus.CANCELLED)).status is TaskStatus.CANCELLED
    with pytest.raises(TaskNotFoundError):
        await planning.planner.end(TaskId(agent_id(9)), TaskStatus.COMPLETED)
    with pytest.raises(TaskNotFoundError):
        await planning.planner.task(TaskId(agent_id(9)))
    with pytest.raises(PlanNotFoundError):
        await planning.planner.plan(PlanId(agent_id(9)))


async def test_the_small_do_not_starve_the_large(planning: Planning) -> None:
    """One machine of two is kept for the large task; small ones come for ever, and go on with the other."""
    await planning.report(machine(1), machine(2))
    small = await planning.planner.generate_plan([task(8.0) for _ in range(6)])
    large = await planning.planner.generate_plan([task(24.0)])
    order = random.Random(4)
    rounds = 0
    while (await planning.planner.task(large.tasks[0].task_id)).status is not TaskStatus.ASSIGNED:
        rounds += 1
        await planning.planner.generate_plan([task(8.0)])
        running = (await planning.record.plans.open_tasks()).assigned
        assert all(used <= 24.0 for used in booked(running).values())
        await planning.planner.end(order.choice(running).task_id, TaskStatus.COMPLETED)
        await planning.planner.assign()
        assert rounds < 20
    running = (await planning.record.plans.open_tasks()).assigned
    assert rounds >= 3
    assert any(one.plan_id not in {small.plan_id, large.plan_id} for one in running)


async def test_what_is_kept_is_big_enough_however_many_small_machines_are_nearer(planning: Planning) -> None:
    """Forty small machines lack less than the large one that somebody else uses; none of them will ever do."""
    small = [machine(number, 12.0, 1, gpu_vram_total_gb=12.0) for number in range(10, 50)]
    await planning.report(machine(1, 9.0, 12), machine(2, 4.0, 3), *small)
    large = await planning.planner.generate_plan([task(20.0, 12)])
    assert where(large) == [None]
    # Agent 1 lacks least: what comes later goes everywhere else, and then waits.
    later = await planning.planner.generate_plan([task(1.0) for _ in range(len(small) + 4)])
    assert where(later).count(None) == 1
    assert 1 not in where(later)
    await planning.report(machine(1, 21.0, 12))
    assert where(await again(planning, large)) == [1]


async def test_a_machine_without_the_memory_is_not_kept(planning: Planning) -> None:
    await planning.report(
        machine(1, 20.0, memory=10.0, memory_percent=50.0), machine(2, 9.0, memory=10.0, memory_percent=90.0)
    )
    plan = await planning.planner.generate_plan([task(24.0, 1, 64.0), task(8.0), task(8.0), task(8.0)])
    assert where(plan) == [None, 1, 1, None]


async def test_a_task_keeps_a_machine_that_others_use(planning: Planning) -> None:
    """Big enough, but in use by who knows whom: nothing of ours goes there meanwhile."""
    await planning.report(machine(1, 16.0), machine(2, 10.0))
    plan = await planning.planner.generate_plan([task(20.0), task(8.0), task(8.0)])
    assert where(plan) == [None, 2, None]
    await planning.report(machine(1, 24.0))
    assert where(await again(planning, plan)) == [1, 2, None]


async def test_while_nobody_knows_what_is_free_tasks_wait(planning: Planning) -> None:
    await planning.report(machine(1))
    away = AsyncMock()
    away.find.side_effect = away.get.side_effect = IndexUnavailableError()
    planner = wire(planning.settings, planning.ports_over(away)).planner
    away.newest_heartbeat.return_value = None
    planner._orchestrator._record = away
    plan = await planner.generate_plan([task(1.0)])
    assert statuses(plan) == ["pending_capacity"]
    assert where(await again(planning, plan)) == [1]


async def test_two_planners_at_once_do_not_book_the_same_twice(planning: Planning) -> None:
    await planning.report(machine(1))
    opened = await planning.record.plans.open_tasks()
    plan = await planning.planner.generate_plan([task(20.0)])
    other = wire(planning.settings, planning.ports_over(planning.index.capacity)).planner
    late = (await other.generate_plan([task(20.0)])).tasks[0]
    assert late.status is TaskStatus.PENDING_CAPACITY
    assert not await planning.record.plans.assign([plan.tasks[0]], generation=opened.generation)


async def test_a_long_queue_is_looked_at_in_passes_of_bounded_work(planning: Planning) -> None:
    """Each needs a little less than the one before, so that none can be skipped; only the last ones fit."""
    await planning.report(machine(1))
    planning.planner._calls_a_pass = 5
    plan = await planning.planner.generate_plan([task(90.0 - n) for n in range(30)] + [task(4.0), task(4.0)])
    passes, find = 1, planning.planner._orchestrator.find
    while (found := statuses(await again(planning, plan)))[-1] != "assigned":
        planning.planner._orchestrator.find = asked = AsyncMock(side_effect=find)  # type: ignore[method-assign]  # counted
        passes += 1
        await planning.planner.assign()
        assert asked.await_count <= 6
    assert found == ["pending_capacity"] * 30 + ["assigned"] * 2
    assert passes > 2


async def test_tasks_of_an_offline_agent_stay_those_of_a_forgotten_one_go_elsewhere(planning: Planning) -> None:
    await planning.report(machine(1))
    plan = await planning.planner.generate_plan([task(8.0)])
    await planning.report(machine(1, status=AgentStatus.OFFLINE), machine(2))
    planning.planner._due.set()
    await planning.planner.run_once()
    assert where(await planning.planner.plan(plan.plan_id)) == [1]
    position = await planning.index.capacity.forget(agent_id(1))
    assert await planning.record.agents.forget(agent_id(1), position=position)
    planning.planner._release_at = 0.0
    planning.planner._due.set()
    await planning.planner.run_once()
    assert where(await planning.planner.plan(plan.plan_id)) == [2]


def booked(running: Sequence[Task]) -> dict[str, float]:
    used: dict[str, float] = {}
    for one in running:
        assert one.agent_id is not None
        used[one.agent_id] = used.get(one.agent_id, 0.0) + one.needs.amounts.gpu_vram_gb
    return used


async def test_300_tasks_on_too_small_a_fleet_finish_in_order_through_a_restart_of_everything(
    settings: Settings,
) -> None:
    chance, clock = random.Random(11), ManualClock(START_MS)
    fleet = [machine(number) for number in range(1, 7)]
    sizes = [chance.choice((2.0, 4.0, 8.0, 16.0, 24.0)) for _ in range(300)]
    requests = []
    for n, size in enumerate(sizes):
        needed = [f"t{n - chance.randint(1, 20)}"] if n > 20 and chance.random() < 0.3 else []
        requests.append(task(size, 1, 0.0, *needed, name=f"t{n}"))
    done: list[str] = []
    assigned: list[str] = []
    running: list[Task] = []
    plan_id = PlanId("")
    for life in range(3):
        async with planning_over(settings, clock, fresh=life == 0) as planning:
            if life:
                await planning.index.capacity._client.flushall()
                assert await Rebuild(planning.index.upkeep, planning.record.reader, "test").rebuild()
            await planning.report(*fleet)
            if not life:
                made = await planning.planner.generate_plan(requests)
                plan_id = made.plan_id
                running = [one for one in made.tasks if one.status is TaskStatus.ASSIGNED]
                assigned += [one.name for one in running]
            while len(done) < (100, 200, 300)[life]:
                assert running, f"nothing runs after {len(done)} tasks"
                assert all(used <= 24.0 for used in booked(running).values())
                ended = running.pop(chance.randrange(len(running)))
                clock.advance(1)
                await planning.planner.end(ended.task_id, TaskStatus.COMPLETED)
                done.append(ended.name)
                placed = await planning.planner.assign()
                assigned += [one.name for one in placed]
                running += placed
                if len(done) % 20 == 0:
                    await planning.report(*fleet)
            found = await planning.planner.plan(plan_id)
            assert {one.task_id for one in found.tasks if one.status is TaskStatus.ASSIGNED} == {
                one.task_id for one in running
            }
    assert sorted(done) == sorted(assigned) == sorted(one.name for one in requests)
    # In order: of two tasks that need the same and depend on nothing, the earlier one went first.
    place = {name: at for at, name in enumerate(assigned)}
    for size in set(sizes):
        same = [one for one in requests if one.needs.amounts.gpu_vram_gb == size and not one.depends_on]
        assert [place[one.name] for one in same] == sorted(place[one.name] for one in same)
    finished = {name: at for at, name in enumerate(done)}
    assert all(finished[needed] < finished[one.name] for one in requests for needed in one.depends_on)
