"""What the use cases need of the world. `app.index` and `app.record` implement it; entry points wire it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

import msgspec

from app.models.agent import AgentFilter, AgentHistory, AgentPage, RecordedState, RegisteredAgent
from app.models.capacity import AgentCapacity, CapacityPage, CapacityQuery
from app.models.change import Change
from app.models.cordon import Cordon
from app.models.fleet import FleetPage
from app.models.health import IndexHealth
from app.models.heartbeat import Heartbeat
from app.models.identity import AgentId, StreamId
from app.models.insight import Candidate, Explanation, Fit, Overall, PoolTotals, TrendQuery, TrendSeries
from app.models.log import Gap, LogEntry
from app.models.plan import Plan, PlanId, Task, TaskId, TaskStatus

RecordSession = Any
"""An open session of the record, opaque to everybody but `app.record`; callers may lend theirs."""


class CapacityIndex(Protocol):
    """The newest state of every agent, in Redis. Every call may raise IndexUnavailableError."""

    async def find(self, query: CapacityQuery) -> CapacityPage:
        """Fresh, placeable agents with at least what is asked, in order; never answers short."""
        ...

    async def get(self, agent_id: AgentId) -> AgentCapacity | None: ...

    async def forget(self, agent_id: AgentId) -> StreamId | None:
        """Takes the agent out and says so in the log; returns that entry's id, None if it was not indexed."""
        ...

    async def ping(self) -> None:
        """Raises IndexUnavailableError unless lookups would be answered from the index now."""
        ...


class IntakeLoad(msgspec.Struct, frozen=True, kw_only=True):
    """How the log and the fleet stand.

    Attributes:
        unapplied: entries that the index group has yet to apply.
        agents: agents that are not offline.
        cloned: agents that were seen from two machines within the last `offline_after_s`.
    """

    unapplied: int = 0
    agents: int = 0
    cloned: frozenset[AgentId] = frozenset()


class HeartbeatLog(Protocol):
    """The stream, from the producers' side. May raise IndexUnavailableError or BacklogFullError."""

    async def append(self, heartbeats: Sequence[Heartbeat]) -> list[StreamId]:
        """Returns once the stream has all of them, in the order given."""
        ...

    async def load(self) -> IntakeLoad: ...


class ChangeFeed(Protocol):
    """The feed of visible changes, in Redis. Every call may raise IndexUnavailableError."""

    async def newest(self) -> StreamId:
        """The version that a reader who wants only what comes next starts after."""
        ...

    async def read(self, after: StreamId, *, block_s: float) -> list[Change]:
        """What comes after a version, oldest first; empty after `block_s` without anything.

        A reader whose version is no longer in the feed (trimmed, or lost with Redis's data) gets a `reset`
        first, and then whatever there is.
        """
        ...

    async def want_memory(self, amounts_gb: Sequence[float]) -> None:
        """For at least 15 s the feed tells of agents whose free main memory grows past one of these.

        It tells of no other change of memory: nearly every heartbeat brings one. At most 500 amounts in all.
        """
        ...


class FleetInsight(Protocol):
    """Answers about the whole fleet, from counts and slices. Every call may raise IndexUnavailableError."""

    async def explain(self, query: CapacityQuery) -> Explanation: ...

    async def fit(self, query: CapacityQuery) -> Fit:
        """How many tasks of the size that the query's thresholds name; its limit and cursor do not matter."""
        ...

    async def big_enough(self, query: CapacityQuery) -> list[Candidate]:
        """Placeable agents whose machines have the VRAM, cores and GPU type that the query names, free or not.

        At most 100, and the same ones from call to call as long as the fleet's machines are the same; those that
        do not say how big they are are not among them.
        """
        ...

    async def summary(
        self, *, agent_type: str | None = None, pool_name: str | None = None, limit: int, after: str | None = None
    ) -> tuple[list[PoolTotals], str | None]:
        """Totals by type, pool and GPU type, in a fixed order; the second value continues, None at the end.

        `limit` counts pools, not rows.
        """
        ...

    async def overall(self, *, agent_type: str | None = None) -> Overall:
        """Totals by type and GPU type at one moment, over all pools, at a price that does not grow with them."""
        ...


class FleetIndex(Protocol):
    """Every agent, for a map of the fleet. May raise IndexUnavailableError."""

    async def page(self, *, limit: int, cursor: str | None = None) -> FleetPage:
        """About `limit` agents; raises InvalidCursorError for a cursor that no page said."""
        ...


class TotalsRecord(Protocol):
    """Totals over time, in the durable record. Every call may raise RecordUnavailableError."""

    async def keep(self, totals: Sequence[PoolTotals], *, at_ms: int) -> None:
        """Keeps what there was at a moment; of each time slot the newest stays. Idempotent."""
        ...

    async def trend(self, query: TrendQuery, *, until_ms: int) -> list[TrendSeries]:
        """At most 50 series, largest first, of at most 300 points each."""
        ...


class HealthIndex(Protocol):
    """How log, workers and index stand. May raise IndexUnavailableError."""

    async def health(self) -> IndexHealth: ...


class CordonIndex(Protocol):
    """Cordons where they are enforced. Every call may raise IndexUnavailableError."""

    async def cordon(self, agent_id: AgentId, cordon: Cordon) -> StreamId | None:
        """In force when it returns; the id of its log entry, None for an agent that is not in the index."""
        ...

    async def uncordon(self, agent_id: AgentId) -> StreamId | None:
        """None when it was not cordoned."""
        ...


class CordonRecord(Protocol):
    """Cordons in the durable record. Every call may raise RecordUnavailableError."""

    async def set_cordon(self, agent_id: AgentId, cordon: Cordon | None, *, position: StreamId) -> None:
        """Keeps the cordon, or that it was lifted, unless a later entry already said otherwise. Idempotent."""
        ...

    async def set_cordons(self, positions: Mapping[AgentId, StreamId], cordon: Cordon | None) -> None:
        """As `set_cordon`, for many agents in one transaction."""
        ...


class Receivers(Protocol):
    """Who takes heartbeats in. May raise IndexUnavailableError."""

    async def receive(self, receiver: str, *, gap_s: float) -> bool:
        """A receiver is there; returns whether none had been for `gap_s`, which begins a grace."""
        ...


class CapacityRecord(Protocol):
    """Capacity answered from the durable record. Every call may raise RecordUnavailableError.

    The session is the caller's if one is lent, else one is opened and closed per call.
    """

    async def find(
        self,
        query: CapacityQuery,
        *,
        seen_since_ms: int,
        now_ms: int | None = None,
        session: RecordSession | None = None,
    ) -> CapacityPage:
        """The same agents in the same order as the index, of those heard of since `seen_since_ms`.

        Cordons that have expired at `now_ms` hide nobody; left out, that is when somebody heard of at
        `seen_since_ms` is offline.
        """
        ...

    async def get(
        self, agent_id: AgentId, *, seen_since_ms: int, session: RecordSession | None = None
    ) -> AgentCapacity | None:
        """The agent, `offline` where it has not been heard of since `seen_since_ms`."""
        ...

    async def newest_heartbeat(self, *, session: RecordSession | None = None) -> StreamId | None:
        """The id under which anybody was last heard of; None in an empty record."""
        ...


class AgentRecord(Protocol):
    """The registry. Every call may raise RecordUnavailableError."""

    async def list_agents(self, wanted: AgentFilter) -> AgentPage: ...

    async def agent(self, agent_id: AgentId) -> RegisteredAgent | None: ...

    async def history(self, agent_id: AgentId, *, limit: int) -> AgentHistory | None:
        """At most `limit` samples and as many events, newest first; None for an unknown agent."""
        ...

    async def forget(self, agent_id: AgentId, *, position: StreamId | None) -> bool:
        """Hides the agent and deletes its history unless it was heard of after `position`; None: in any case.

        Returns whether the agent was there.
        """
        ...

    async def ping(self) -> None: ...


class RecordWriter(Protocol):
    """The recorder's side of the record. Every call may raise RecordUnavailableError."""

    async def write(self, entries: Sequence[LogEntry]) -> RecordedBatch:
        """Applies a batch in log order by the order rule, in one transaction. Idempotent."""
        ...

    async def mark_gap(self, gap: Gap) -> None:
        """Notes that history between two log positions is incomplete. Idempotent."""
        ...

    async def thin(self) -> int:
        """Deletes history and events past their retention, in bounded slices; returns the rows deleted."""
        ...


class RecordedBatch(Protocol):
    """What a batch did, for logs and metrics."""

    @property
    def applied(self) -> int: ...
    @property
    def ignored(self) -> int: ...
    @property
    def transitions(self) -> int: ...
    @property
    def rejected(self) -> Sequence[tuple[StreamId, str]]:
        """Entries that can never be written, each with the reason."""
        ...


class RecordReader(Protocol):
    """The rebuild's side of the record."""

    def states(self, *, page_size: int) -> AsyncIterator[list[RecordedState]]:
        """Every agent that is not forgotten, in pages by ascending id."""
        ...

    async def greatest_position(self) -> StreamId | None:
        """The greatest stream id the record has seen."""
        ...


class OpenTasks(msgspec.Struct, frozen=True, kw_only=True):
    """All tasks that are to be placed, oldest plan first and in its order, and all that are placed and not ended.

    `generation` changes with every assignment.
    """

    generation: int
    pending: list[Task]
    assigned: list[Task]


class PlanRecord(Protocol):
    """Plans in the durable record. Every call may raise RecordUnavailableError."""

    async def add(self, plan: Plan, *, most_open: int) -> None:
        """Keeps a plan behind all that are open; raises TooManyTasksError if that makes too many open tasks."""
        ...

    async def plan(self, plan_id: PlanId) -> Plan | None: ...

    async def task(self, task_id: TaskId) -> Task | None: ...

    async def open_tasks(self) -> OpenTasks: ...

    async def pending(self, *, limit: int) -> list[Task]:
        """Those that wait for capacity, oldest plan first."""
        ...

    async def assign(self, tasks: Sequence[Task], *, generation: int) -> bool:
        """Keeps where these go; False, and nothing kept, when anybody assigned anything since `generation`.

        A task that has ended meanwhile stays as it is.
        """
        ...

    async def release_forgotten(self) -> int:
        """What is assigned to agents that the record has forgotten is pending again; returns how many tasks.

        They keep their place in the queue.
        """
        ...

    async def end(self, task_id: TaskId, status: TaskStatus, *, now: datetime) -> Task | None:
        """Ends a task and lets those go on that waited for it; None for an unknown one.

        Returns the task as it is afterwards: of another status if it could not end like this.
        """
        ...


class Clock(Protocol):
    """Wall-clock time where no Redis is asked: the fallback to the record."""

    def now_ms(self) -> int: ...
