"""Plans over HTTP: tasks in, assignments out, and word of how a task ended."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

import msgspec
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from starlette.requests import Request
from starlette.responses import Response

from app.api.answers import answer
from app.api.body import read_document
from app.api.documents import iso
from app.api.fields import MAX_POOL_NAME
from app.api.query import read_query
from app.api.schemas import Amount, Cores, PlainText, StrictIn, read_as
from app.api.wiring import wiring_of
from app.errors import InvalidAgentIdError, PlanNotFoundError, TaskNotFoundError
from app.models.capacity import GpuType
from app.models.identity import AGENT_TYPE_PATTERN, DEFAULT_AGENT_TYPE, parse_agent_id
from app.models.plan import Amounts, Needs, Plan, PlanId, Task, TaskId, TaskRequest, TaskStatus, unordered

MAX_TASKS: Final = 1_000
MAX_DEPENDENCIES: Final = 100
MAX_TASK_NAME: Final = 128

TaskName = Annotated[PlainText, Field(min_length=1, max_length=MAX_TASK_NAME)]


class NeedsIn(StrictIn):
    """What a task needs of the one agent that it is to run on. GB means GiB."""

    gpu_vram_gb: Amount = 0.0
    cpu_cores: Cores = 1
    memory_gb: Amount = 0.0
    agent_type: Annotated[str, Field(pattern=f"^{AGENT_TYPE_PATTERN}$")] = DEFAULT_AGENT_TYPE
    pool_name: Annotated[PlainText, Field(min_length=1, max_length=MAX_POOL_NAME)] | None = None
    gpu_type: Annotated[GpuType, Field(strict=False)] | None = None

    def needs(self) -> Needs:
        return Needs(
            amounts=Amounts(self.gpu_vram_gb, self.cpu_cores, self.memory_gb),
            agent_type=self.agent_type,
            pool_name=self.pool_name,
            gpu_type=self.gpu_type,
        )


class RequestIn(NeedsIn):
    """One task alone."""

    name: TaskName = "task"


class TaskIn(NeedsIn):
    """A task of a plan; `depends_on` names others of the same plan, which have to be completed before."""

    name: TaskName
    depends_on: Annotated[tuple[TaskName, ...], Field(max_length=MAX_DEPENDENCIES, strict=False)] = ()

    def to_domain(self) -> TaskRequest:
        return TaskRequest(name=self.name, needs=self.needs(), depends_on=tuple(dict.fromkeys(self.depends_on)))


class PlanIn(StrictIn):
    tasks: Annotated[list[TaskIn], Field(min_length=1, max_length=MAX_TASKS)]

    @model_validator(mode="after")
    def _connected(self) -> Self:
        names = {task.name for task in self.tasks}
        if len(names) != len(self.tasks):
            raise PydanticCustomError("repeated", "Two tasks have the same name")
        if not names.issuperset(name for task in self.tasks for name in task.depends_on):
            raise PydanticCustomError("unknown_task", "A task depends on one that is not in the plan")
        if unordered([task.to_domain() for task in self.tasks]):
            raise PydanticCustomError("circular", "Tasks depend on each other in a circle")
        return self


class TaskEndIn(StrictIn):
    """How a task ended. A task that is not assigned can only be cancelled."""

    status: Literal["completed", "failed", "cancelled"]


class TaskDocument(msgspec.Struct, frozen=True):
    """`agent_id` is where the task is to run or ran, null as long as nobody has room for it."""

    task_id: str
    plan_id: str
    name: str
    status: TaskStatus
    agent_id: str | None
    gpu_vram_gb: float
    cpu_cores: int
    memory_gb: float
    agent_type: str
    pool_name: str | None
    gpu_type: GpuType | None
    depends_on: tuple[str, ...]
    assigned_at: str | None
    ended_at: str | None

    @classmethod
    def of(cls, task: Task) -> TaskDocument:
        needs, amounts = task.needs, task.needs.amounts
        return cls(
            task.task_id,
            task.plan_id,
            task.name,
            task.status,
            task.agent_id,
            amounts.gpu_vram_gb,
            amounts.cpu_cores,
            amounts.memory_gb,
            needs.agent_type,
            needs.pool_name,
            needs.gpu_type,
            task.depends_on,
            None if task.assigned_at is None else iso(task.assigned_at),
            None if task.ended_at is None else iso(task.ended_at),
        )


class PlanDocument(msgspec.Struct, frozen=True):
    """Tasks in the order they were asked for."""

    plan_id: str
    created_at: str
    tasks: list[TaskDocument]

    @classmethod
    def of(cls, plan: Plan) -> PlanDocument:
        return cls(plan.plan_id, iso(plan.created_at), [TaskDocument.of(task) for task in plan.tasks])


async def post_plan(request: Request) -> Response:
    wiring = wiring_of(request)
    read_query(request, ())
    document = await read_document(request, max_bytes=wiring.settings.max_body_bytes)
    asked = read_as(PlanIn, document)
    plan = await wiring.planner.generate_plan([task.to_domain() for task in asked.tasks])
    return answer(PlanDocument.of(plan), status=201)


async def post_request(request: Request) -> Response:
    wiring = wiring_of(request)
    read_query(request, ())
    document = await read_document(request, max_bytes=wiring.settings.max_body_bytes)
    asked = read_as(RequestIn, document)
    plan = await wiring.planner.generate_plan([TaskRequest(name=asked.name, needs=asked.needs())])
    return answer(TaskDocument.of(plan.tasks[0]), status=201)


async def get_plan(request: Request) -> Response:
    read_query(request, ())
    try:
        plan_id = PlanId(parse_agent_id(request.path_params["plan_id"]))
    except InvalidAgentIdError:
        raise PlanNotFoundError from None
    return answer(PlanDocument.of(await wiring_of(request).planner.plan(plan_id)))


async def get_task(request: Request) -> Response:
    read_query(request, ())
    return answer(TaskDocument.of(await wiring_of(request).planner.task(_task_id(request))))


async def end_task(request: Request) -> Response:
    wiring = wiring_of(request)
    read_query(request, ())
    task_id = _task_id(request)
    document = await read_document(request, max_bytes=wiring.settings.max_body_bytes)
    ended = read_as(TaskEndIn, document)
    return answer(TaskDocument.of(await wiring.planner.end(task_id, TaskStatus(ended.status))))


def _task_id(request: Request) -> TaskId:
    try:
        return TaskId(parse_agent_id(request.path_params["task_id"]))
    except InvalidAgentIdError:
        raise TaskNotFoundError from None
