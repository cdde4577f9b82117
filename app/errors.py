"""Domain errors. Each class carries a stable `code`; `app.api.problems` maps codes to HTTP statuses."""

from __future__ import annotations

from typing import ClassVar


class HeadroomError(Exception):
    """Base of everything that Headroom raises on purpose.

    Attributes:
        code: stable, documented in docs/errors.md; planners may rely on it.
        detail: one sentence for a person; never echoes input.
        retry_after_s: when it makes sense to try again, or None.
    """

    code: ClassVar[str] = "internal_error"
    default_detail: ClassVar[str] = "Something unforeseen happened"

    def __init__(self, detail: str | None = None, *, retry_after_s: float | None = None) -> None:
        self.detail = detail if detail is not None else self.default_detail
        self.retry_after_s = retry_after_s
        super().__init__(self.detail)


class InvalidAgentIdError(HeadroomError):
    code = "invalid_agent_id"
    default_detail = "Invalid agent_id format (must be UUID)"


class AgentNotFoundError(HeadroomError):
    code = "agent_not_found"
    default_detail = "Agent not found"


class AgentArchivedError(HeadroomError):
    """An agent that the record knows and the index has dropped after a long time offline."""

    code = "agent_archived"
    default_detail = "The agent has been offline for too long; it can be changed once it reports again"


class InvalidQueryError(HeadroomError):
    """A search with a threshold or filter that no search can have."""

    code = "invalid_query"
    default_detail = "The query has invalid parameters"


class InvalidCursorError(HeadroomError):
    code = "invalid_cursor"
    default_detail = "The cursor was not made by this server"


class PlanNotFoundError(HeadroomError):
    code = "plan_not_found"
    default_detail = "Plan not found"


class TaskNotFoundError(HeadroomError):
    code = "task_not_found"
    default_detail = "Task not found"


class TaskStateError(HeadroomError):
    """A task that has ended otherwise, or cannot end like this because it was never assigned."""

    code = "task_state"
    default_detail = "The task is not in a state that can become this"


class UnavailableError(HeadroomError):
    """A dependency is away; the same call may succeed later."""

    code = "unavailable"
    default_detail = "A dependency is away"

    def __init__(self, detail: str | None = None, *, retry_after_s: float | None = 2.0) -> None:
        super().__init__(detail, retry_after_s=retry_after_s)


class IndexUnavailableError(UnavailableError):
    """Redis does not answer, refuses, or holds an index that may not be trusted."""

    code = "index_unavailable"
    default_detail = "The capacity index is away"


class IndexRebuildingError(IndexUnavailableError):
    """Redis answers, but its index is missing, older, or of another layout, and is being rebuilt."""

    code = "index_rebuilding"
    default_detail = "The capacity index is being rebuilt"


class RecordUnavailableError(UnavailableError):
    code = "record_unavailable"
    default_detail = "The durable record is away"


class CapacityUnknownError(UnavailableError):
    """The index is away and everything in the record is too old to be trusted."""

    code = "capacity_unknown"
    default_detail = "The index is away and the record is older than an agent may be silent"


class BacklogFullError(UnavailableError):
    """The index group lags too far behind for more heartbeats to be taken."""

    code = "backlog_full"
    default_detail = "Too many heartbeats are waiting to be applied"


class UnexpectedAnswerError(HeadroomError):
    """A planner's client was answered by something that is not the Headroom it knows."""

    code = "unexpected_answer"
    default_detail = "The server's answer is not one of Headroom's"


class TooManyWaitingError(UnavailableError):
    """This process has as many waiting or listening requests as it takes."""

    code = "too_many_waiting"
    default_detail = "Too many requests are waiting here already"


class TooManyTasksError(UnavailableError):
    """As many tasks are open as the planner takes."""

    code = "too_many_tasks"
    default_detail = "Too many tasks of plans have not ended yet"


class UndecodableEntryError(HeadroomError):
    """A log entry that no retry can make readable; it belongs in the dead-letter stream."""

    code = "undecodable_entry"
    default_detail = "The log entry cannot be decoded"


class StartupRefusedError(HeadroomError):
    """The process refuses to start, and `detail` says what to do about it."""

    code = "startup_refused"
    default_detail = "The process refuses to start"
