"""`GET /api/v1/waiting`: who waits, and for what: searches in this process, and tasks of plans."""

from __future__ import annotations

from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from app.api.answers import answer
from app.api.plans import TaskDocument
from app.api.query import read_query
from app.api.wiring import wiring_of
from app.errors import UnavailableError
from app.models.capacity import GpuType
from app.service.waiting import WaitingSearch

MOST_SEARCHES: Final = 200
MOST_TASKS: Final = 200


class WaitingSearchDocument(msgspec.Struct, frozen=True):
    """One search with its thresholds, and how many wait for it."""

    min_gpu_vram_gb: float
    min_cpu_cores: int
    min_memory_gb: float
    agent_type: str
    pool_name: str | None
    gpu_type: GpuType | None
    waiters: int
    longest_wait_s: float

    @classmethod
    def of(cls, search: WaitingSearch) -> WaitingSearchDocument:
        query = search.query
        return cls(
            query.min_gpu_vram_gb,
            query.min_cpu_cores,
            query.min_memory_gb,
            query.agent_type,
            query.pool_name,
            query.gpu_type,
            search.waiters,
            search.longest_wait_s,
        )


class WaitingDocument(msgspec.Struct, frozen=True):
    """Searches by longest wait; tasks by age of their plan, null while the record is away."""

    searches: list[WaitingSearchDocument]
    tasks: list[TaskDocument] | None


async def list_waiting(request: Request) -> Response:
    read_query(request, ())
    wiring = wiring_of(request)
    searches = wiring.waiting.searches(limit=MOST_SEARCHES)
    tasks: list[TaskDocument] | None
    try:
        tasks = [TaskDocument.of(task) for task in await wiring.planner.pending(limit=MOST_TASKS)]
    except UnavailableError:
        tasks = None
    return answer(WaitingDocument([WaitingSearchDocument.of(search) for search in searches], tasks))
