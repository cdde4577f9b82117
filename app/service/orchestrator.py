"""What a planner asks: who has this much free, and how is this agent doing. Index first, else the record."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final, Literal, TypeVar
from uuid import UUID

import msgspec

from app.errors import (
    AgentNotFoundError,
    IndexUnavailableError,
    RecordUnavailableError,
)
from app.models.capacity import (
    AgentCapacity,
    AvailableCapacity,
    CapacityPage,
    CapacityQuery,
    Source,
    check_query,
)
from app.models.identity import AgentId, parse_agent_id
from app.service.freshness import Fresh, Freshness
from app.service.ports import CapacityIndex, CapacityRecord, Clock, RecordSession
from app.telemetry import LOOKUP_SECONDS, LOOKUPS

log = logging.getLogger(__name__)

Call = Literal["agent", "search"]
T = TypeVar("T")

_COUNTED: Final = {
    (call, source): (LOOKUPS.labels(call, source), LOOKUP_SECONDS.labels(call, source))
    for call in ("agent", "search")
    for source in ("index", "record")
}


class LocatedCapacity(msgspec.Struct, frozen=True, kw_only=True):
    """One agent's capacity and where it came from; `as_of` as in `CapacityPage`."""

    agent: AgentCapacity
    source: Source = "index"
    as_of: datetime | None = None


class OrchestratorService:
    """Capacity lookups over the index, and over the record while the index is away.

    Args:
        index: the sorted sets.
        record: the durable record, asked only while the index cannot answer.
        clock: wall-clock time for freshness in the record.
        offline_after_s: silence after which an agent counts as offline.
        index_timeout_s: longest wait for the index; the record is asked after it.
        record_timeout_s: longest wait for the record.
        steady_s: a clock that nobody sets, for freshness in the record.
    """

    def __init__(
        self,
        index: CapacityIndex,
        record: CapacityRecord,
        *,
        clock: Clock,
        offline_after_s: float = 90.0,
        index_timeout_s: float = 1.0,
        record_timeout_s: float = 5.0,
        steady_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._index = index
        self._record = record
        offline_after_ms = math.ceil(offline_after_s * 1000)
        self._freshness = Freshness(clock=clock, offline_after_ms=offline_after_ms, steady_s=steady_s)
        self._index_timeout_s = index_timeout_s
        self._record_timeout_s = record_timeout_s
        self._index_away = False

    async def get_agent_capacity(self, agent_id: str | UUID, db: RecordSession | None = None) -> AgentCapacity:
        """One agent's capacity, online or not.

        Args:
            agent_id: its UUID.
            db: an open session of the record to use if the index is away; otherwise one is opened.

        Raises:
            InvalidAgentIdError: not a UUID.
            AgentNotFoundError: no such agent.
            UnavailableError: neither index nor record can tell.
        """
        return (await self.get(parse_agent_id(agent_id), db=db)).agent

    async def get_available_capacity(
        self, min_gpu_vram_gb: float = 0.0, min_cpu_cores: int = 1, db: RecordSession | None = None
    ) -> list[AvailableCapacity]:
        """Online desktop agents with at least that much free, most free VRAM (GiB) first, at most 1,000.

        Args:
            min_gpu_vram_gb: free memory of one GPU, in GiB.
            min_cpu_cores: free cores.
            db: as in `get_agent_capacity`.

        Raises:
            InvalidQueryError: a threshold that is negative, not finite, or of another type.
            UnavailableError: neither index nor record can tell.
        """
        query = CapacityQuery(min_gpu_vram_gb=min_gpu_vram_gb, min_cpu_cores=min_cpu_cores)
        return (await self.find(query, db=db)).agents

    async def get(self, agent_id: AgentId, db: RecordSession | None = None) -> LocatedCapacity:
        """As `get_agent_capacity`, saying where the answer comes from."""
        started = time.perf_counter()
        try:
            agent = await self._ask_index(self._index.get(agent_id))
            located = None if agent is None else LocatedCapacity(agent=agent)
            source: Source = "index"
        except IndexUnavailableError as unavailable:
            located = await self._fall_back(lambda: self._get_recorded(agent_id, db), unavailable)
            source = "record"
        _count("agent", source, started)
        if located is None:
            log.debug("Agent %s is unknown (source=%s)", agent_id, source)
            raise AgentNotFoundError
        log.debug("Agent %s is %s (source=%s)", agent_id, located.agent.status, source)
        return located

    async def find(self, query: CapacityQuery, db: RecordSession | None = None) -> CapacityPage:
        """As `get_available_capacity`, with every filter, paging, and where the answer comes from."""
        check_query(query)
        started = time.perf_counter()
        try:
            page = await self._ask_index(self._index.find(query))
        except IndexUnavailableError as unavailable:
            page = await self._fall_back(lambda: self._find_recorded(query, db), unavailable)
        _count("search", page.source, started)
        log.info(
            "Found %d agents with capacity (min_gpu=%sGB, min_cpu=%d)",
            len(page.agents),
            float(query.min_gpu_vram_gb),
            query.min_cpu_cores,
        )
        return page

    async def _ask_index(self, answer: Awaitable[T]) -> T:
        # A lookup that sweeps as it goes makes several calls; each has its own limit, this one is for all.
        try:
            async with asyncio.timeout(self._index_timeout_s):
                answered = await answer
        except TimeoutError as late:
            raise IndexUnavailableError from late
        if self._index_away:
            self._index_away = False
            log.info("The index answers lookups again")
        return answered

    async def _fall_back(self, ask: Callable[[], Awaitable[T]], unavailable: IndexUnavailableError) -> T:
        if not self._index_away:
            self._index_away = True
            log.warning("The index cannot answer (%s), lookups go to the record", unavailable.code)
        try:
            async with asyncio.timeout(self._record_timeout_s):
                return await ask()
        except (TimeoutError, RecordUnavailableError):
            log.debug("Neither the index nor the record can answer (%s)", unavailable.code)
            raise unavailable from None

    async def _find_recorded(self, query: CapacityQuery, db: RecordSession | None) -> CapacityPage:
        fresh = await self._recorded_freshness(db)
        page = await self._record.find(query, seen_since_ms=fresh.seen_since_ms, now_ms=fresh.now_ms, session=db)
        return msgspec.structs.replace(page, source="record", as_of=_moment(fresh.as_of_ms))

    async def _get_recorded(self, agent_id: AgentId, db: RecordSession | None) -> LocatedCapacity | None:
        fresh = await self._recorded_freshness(db)
        agent = await self._record.get(agent_id, seen_since_ms=fresh.seen_since_ms, session=db)
        if agent is None:
            return None
        return LocatedCapacity(agent=agent, source="record", as_of=_moment(fresh.as_of_ms))

    async def _recorded_freshness(self, db: RecordSession | None) -> Fresh:
        """Raises CapacityUnknownError when nothing in the record is fresh."""
        return self._freshness.of(await self._record.newest_heartbeat(session=db))


def _moment(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def _count(call: Call, source: Source, started: float) -> None:
    answered, seconds = _COUNTED[call, source]
    answered.inc()
    seconds.observe(time.perf_counter() - started)
