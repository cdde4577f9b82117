"""From a call's arguments to the domain's query, checked before anything is sent."""

from __future__ import annotations

import sys
from collections.abc import Collection

from app.errors import InvalidQueryError
from app.models.capacity import MAX_WAIT_S, CapacityQuery, GpuType, check_query
from app.models.change import ChangeKind, EventFilter
from app.models.identity import StreamId


def query_of(
    min_gpu_vram_gb: float,
    min_cpu_cores: int,
    *,
    agent_type: str,
    pool_name: str | None,
    gpu_type: GpuType | str | None,
    min_memory_gb: float,
    max_age_s: float | None,
    limit: int | None,
) -> CapacityQuery:
    """Raises InvalidQueryError for what no search can have, whichever way it would go."""
    try:
        wanted_gpu = None if gpu_type is None else GpuType(gpu_type)
    except ValueError:
        raise InvalidQueryError("gpu_type is nvidia, amd, intel or none") from None
    query = CapacityQuery(
        min_gpu_vram_gb=min_gpu_vram_gb,
        min_cpu_cores=min_cpu_cores,
        agent_type=agent_type,
        pool_name=pool_name,
        gpu_type=wanted_gpu,
        min_memory_gb=min_memory_gb,
        max_age_s=max_age_s,
        limit=sys.maxsize if limit is None else limit,
    )
    check_query(query)
    return query


def check_wait(wait_s: float) -> None:
    """Raises InvalidQueryError for a time that no search may wait."""
    if isinstance(wait_s, bool) or not isinstance(wait_s, int | float) or not 0 <= wait_s <= MAX_WAIT_S:
        raise InvalidQueryError(f"wait_s is from 0 to {MAX_WAIT_S:.0f}")


def events_of(
    agent_type: str | None,
    pool_name: str | None,
    kinds: Collection[ChangeKind | str] | None,
    after: StreamId | str | None,
) -> tuple[EventFilter, StreamId | None]:
    """Raises InvalidQueryError for what nobody can listen to."""
    try:
        wanted = EventFilter(
            agent_type=agent_type,
            pool_name=pool_name,
            kinds=None if kinds is None else frozenset(ChangeKind(kind) for kind in kinds),
        )
        return wanted, StreamId.parse(after) if isinstance(after, str) else after
    except ValueError:
        raise InvalidQueryError("kinds are kinds of change, and after is the version of one") from None


def check_search(query: CapacityQuery) -> None:
    """Raises InvalidQueryError for a query that a client cannot ask for."""
    check_query(query)
    if query.after is not None:
        raise InvalidQueryError("pages are followed by the client: a larger limit takes the place of after")
