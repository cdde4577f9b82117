"""`WorkPlanner`: plans of tasks, each assigned to an agent that has room for it, now or when there is one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final
from uuid import uuid4

from app.errors import (
    IndexUnavailableError,
    PlanNotFoundError,
    TaskNotFoundError,
    TaskStateError,
    UnavailableError,
)
from app.models.change import Change, ChangeKind
from app.models.plan import Plan, PlanId, Task, TaskId, TaskRequest, TaskStatus
from app.service.feed import FeedHub
from app.service.ledger import Ledger
from app.service.orchestrator import OrchestratorService
from app.service.placing import Placing, query_for
from app.service.ports import Clock, FleetInsight, PlanRecord
from app.service.thresholds import Thresholds
from app.telemetry import TASKS_ASSIGNED, TASKS_PENDING, TASKS_PENDING_VRAM_BYTES

log = logging.getLogger(__name__)

_LOOK_EVERY_S: Final = 5.0
_REST_S: Final = 0.1
_TRIES: Final = 5
_GIB: Final = 2**30
_CALLS: Final = 1_000
"""Questions to the index in one pass, about a second's worth. The last task of a pass may need some more."""


class WorkPlanner:
    """Takes plans, and assigns what waits: a loop of the API process, woken by the change feed.

    Any number of processes may do so at once: an assignment counts only if nobody else assigned anything since
    its pass began. Everything it knows is in the record, so nothing is lost with a process.

    Args:
        orchestrator: is asked for capacity before anything is assigned.
        insight: names the agents that a task may be kept one of.
        hub: tells of capacity that has come free.
        plans: where plans are kept.
        clock: when things happened.
        most_open: tasks that have not ended; more are refused.
        look_every_s: how often it looks without being told.
        calls_a_pass: questions that a pass may ask of the index before others get their turn.
    """

    name = "planner"
    pause_s = 0.0

    def __init__(
        self,
        orchestrator: OrchestratorService,
        insight: FleetInsight,
        hub: FeedHub,
        plans: PlanRecord,
        *,
        clock: Clock,
        most_open: int = 10_000,
        look_every_s: float = _LOOK_EVERY_S,
        calls_a_pass: int = _CALLS,
    ) -> None:
        self._orchestrator = orchestrator
        self._insight = insight
        self._hub = hub
        self._plans = plans
        self._clock = clock
        self._most_open = most_open
        self._look_every_s = look_every_s
        self._calls_a_pass = calls_a_pass
        self._due = asyncio.Event()
        self._passing = asyncio.Lock()
        self._next = 0.0
        self._release_at = 0.0
        self._round: Placing | None = None
        self._changed = False
        self._listens = False
        self._wanted: dict[tuple[str, str | None], Thresholds] = {}

    async def generate_plan(self, tasks: Sequence[TaskRequest]) -> Plan:
        """Keeps the tasks as a plan and assigns those that fit somewhere now.

        Each goes to the agent with the most free VRAM that fits; the rest is `pending_capacity`, or `blocked` by
        what it depends on. Names are unique within the plan, and what tasks depend on is in it.

        Raises:
            TooManyTasksError: with these there would be too many; there is no plan.
            RecordUnavailableError: there is no plan.
        """
        now = self._now()
        plan_id = PlanId(str(uuid4()))
        made = [
            Task(
                task_id=TaskId(str(uuid4())),
                plan_id=plan_id,
                position=position,
                name=task.name,
                needs=task.needs,
                depends_on=task.depends_on,
                status=TaskStatus.BLOCKED if task.depends_on else TaskStatus.PENDING_CAPACITY,
            )
            for position, task in enumerate(tasks)
        ]
        await self._plans.add(Plan(plan_id=plan_id, created_at=now, tasks=made), most_open=self._most_open)
        try:
            await self.assign()
        except UnavailableError as away:
            log.info("Nobody can say what is free (%s): the tasks of plan %s wait", away.code, plan_id)
            self._due.set()
        return await self.plan(plan_id)

    async def plan(self, plan_id: PlanId) -> Plan:
        """Raises PlanNotFoundError, RecordUnavailableError."""
        found = await self._plans.plan(plan_id)
        if found is None:
            raise PlanNotFoundError
        return found

    async def pending(self, *, limit: int) -> list[Task]:
        """Tasks of any plan that wait for capacity, oldest plan first. Raises RecordUnavailableError."""
        return await self._plans.pending(limit=limit)

    async def task(self, task_id: TaskId) -> Task:
        """Raises TaskNotFoundError, RecordUnavailableError."""
        found = await self._plans.task(task_id)
        if found is None:
            raise TaskNotFoundError
        return found

    async def end(self, task_id: TaskId, status: TaskStatus) -> Task:
        """A task is over: what it held is free again, and what waited for it goes on. Repeating it is harmless.

        Raises:
            TaskNotFoundError: no such task.
            TaskStateError: it has ended otherwise, or was never assigned and is not to be cancelled.
            RecordUnavailableError: nothing has changed.
        """
        task = await self._plans.end(task_id, status, now=self._now())
        if task is None:
            raise TaskNotFoundError
        if task.status is not status:
            raise TaskStateError
        self._wake()
        return task

    async def assign(self) -> list[Task]:
        """One pass: assigns what fits now, as far as it gets; `run_once` goes on where it ends.

        Raises:
            UnavailableError: the record is away, or nobody can tell what is free.
        """
        async with self._passing:
            for _ in range(_TRIES):
                # A round that fails is not gone on with: what it believes may not be so.
                placing, self._round = self._round, None
                if placing is None:
                    placing, self._changed = Placing(self._orchestrator, self._insight), False
                opened = await self._plans.open_tasks()
                placed = await placing.place(
                    opened.pending, Ledger(opened.assigned), self._now(), most_calls=self._calls_a_pass
                )
                if not placed or await self._plans.assign(placed, generation=opened.generation):
                    if placing.unfinished:
                        self._round = placing
                    if placing.unfinished or self._changed:
                        self._due.set()
                    await self._wait_for(opened.pending, placed)
                    return placed
            log.info("Others assign at the same time: trying again in a moment")
            self._due.set()
            return []

    def take(self, changes: Sequence[Change]) -> None:
        """From the feed."""
        for change in changes:
            if change.kind in {ChangeKind.RESET, ChangeKind.REBUILD} or (change.placeable and self._wants(change)):
                self._wake()
                return

    async def run_once(self) -> None:
        try:
            await asyncio.wait_for(self._due.wait(), min(1.0, self._look_every_s))
        except TimeoutError:
            if time.monotonic() < self._next:
                return
        self._due.clear()
        began = time.monotonic()
        self._next = began + self._look_every_s
        try:
            if began >= self._release_at:
                await self._release()
                self._release_at = began + self._look_every_s
            await self.assign()
        except UnavailableError:
            self._next = 0.0
            raise
        # Neither a busy feed nor a long queue may take the whole of a process's time.
        await asyncio.sleep(max(_REST_S, time.monotonic() - began))

    async def _release(self) -> None:
        """An agent that was forgotten will not run what was assigned to it."""
        released = await self._plans.release_forgotten()
        if released:
            log.warning("%d tasks wait again: the agents that they were assigned to are forgotten", released)

    def _wake(self) -> None:
        # A round under way has looked at some tasks before this: they are looked at again after it.
        self._changed = True
        self._due.set()

    async def _wait_for(self, pending: Sequence[Task], placed: Sequence[Task]) -> None:
        left = len(pending) - len(placed)
        TASKS_ASSIGNED.inc(len(placed))
        TASKS_PENDING.set(left)
        gone = {task.task_id for task in placed}
        self._wanted = {}
        vram_gb = 0.0
        for task in pending:
            if task.task_id not in gone:
                vram_gb += task.needs.amounts.gpu_vram_gb
                place = (task.needs.agent_type, task.needs.pool_name)
                self._wanted.setdefault(place, Thresholds()).add(query_for(task.needs))
        TASKS_PENDING_VRAM_BYTES.set(vram_gb * _GIB)
        if not left:
            self._hub.leave(self)
            self._listens = False
        elif not self._listens:
            try:
                await self._hub.join(self)
            except IndexUnavailableError:
                log.debug("Waiting without the feed: pending tasks are looked at now and then")
                return
            self._listens = True
            # What came free between the look and the registration was told to nobody.
            self._due.set()

    def _wants(self, change: Change) -> bool:
        return any(
            thresholds.any_met_by(change.gpu_vram_available_gb, change.cpu_cores_available)
            for place in ((change.agent_type, None), (change.agent_type, change.pool_name))
            if (thresholds := self._wanted.get(place)) is not None
        )

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.now_ms() / 1000, UTC)
