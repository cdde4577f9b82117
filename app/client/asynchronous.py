"""The planner's client for asyncio; `app.client` is its front door."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import UUID

from app.client.query import check_search, check_wait, events_of, query_of
from app.client.route import Route
from app.client.transport import AsyncTransport, async_summary_page, open_async_transport
from app.errors import AgentNotFoundError, UnavailableError
from app.models.capacity import AgentCapacity, AvailableCapacity, CapacityPage, CapacityQuery, GpuType
from app.models.change import Change, ChangeKind
from app.models.identity import DEFAULT_AGENT_TYPE, StreamId, parse_agent_id
from app.models.insight import Explanation, Fit, PoolTotals

T = TypeVar("T")


class AsyncCapacityClient:
    """`CapacityClient` for asyncio: the same calls with `await`, the same answers and errors.

    Example:
        >>> import asyncio
        >>> async def best() -> list[AvailableCapacity]:
        ...     async with AsyncCapacityClient("redis://127.0.0.1:6390") as client:
        ...         return await client.find(min_gpu_vram_gb=12, min_cpu_cores=8, limit=2)
        >>> [agent.gpu_vram_available_gb for agent in asyncio.run(best())]
        [80.0, 24.0]

    It belongs to the event loop in which it is first used, and to that process. Tasks may share it; a task that
    is cancelled in a call leaves nothing behind.

    Args:
        url: as for `CapacityClient`.
        fallback: as for `CapacityClient`.
        timeout_s: as for `CapacityClient`.

    Raises:
        ValueError: a URL of another kind.
    """

    def __init__(self, url: str, *, fallback: str | None = None, timeout_s: float = 1.0) -> None:
        # The transports need asyncio in any case; a planner that blocks does not.
        from asyncio import get_running_loop  # noqa: PLC0415

        urls = [url] if fallback is None else [url, fallback]
        ways = [open_async_transport(way, timeout_s=timeout_s) for way in urls]
        self._route: Route[AsyncTransport] = Route(ways)
        self._closed = False
        self._running_loop = get_running_loop
        self._loop: Any = None

    async def find(
        self,
        min_gpu_vram_gb: float = 0.0,
        min_cpu_cores: int = 1,
        *,
        agent_type: str = DEFAULT_AGENT_TYPE,
        pool_name: str | None = None,
        gpu_type: GpuType | str | None = None,
        min_memory_gb: float = 0.0,
        max_age_s: float | None = None,
        limit: int | None = None,
        wait_s: float = 0.0,
    ) -> list[AvailableCapacity]:
        """As `CapacityClient.find`."""
        query = query_of(
            min_gpu_vram_gb,
            min_cpu_cores,
            agent_type=agent_type,
            pool_name=pool_name,
            gpu_type=gpu_type,
            min_memory_gb=min_memory_gb,
            max_age_s=max_age_s,
            limit=limit,
        )
        if not wait_s:
            return (await self._ask(lambda way: way.find(query))).agents
        check_wait(wait_s)
        deadline = time.monotonic() + wait_s
        page = await self._ask(lambda way: way.wait(query, wait_s=max(0.0, deadline - time.monotonic())))
        return page.agents

    async def search(self, query: CapacityQuery) -> CapacityPage:
        """As `CapacityClient.search`."""
        check_search(query)
        return await self._ask(lambda way: way.find(query, with_total=query.counted))

    async def count(
        self,
        min_gpu_vram_gb: float = 0.0,
        min_cpu_cores: int = 1,
        *,
        agent_type: str = DEFAULT_AGENT_TYPE,
        pool_name: str | None = None,
        gpu_type: GpuType | str | None = None,
        min_memory_gb: float = 0.0,
        max_age_s: float | None = None,
    ) -> int:
        """As `CapacityClient.count`."""
        query = query_of(
            min_gpu_vram_gb,
            min_cpu_cores,
            agent_type=agent_type,
            pool_name=pool_name,
            gpu_type=gpu_type,
            min_memory_gb=min_memory_gb,
            max_age_s=max_age_s,
            limit=None,
        )
        return await self._ask(lambda way: way.count(query))

    async def explain(
        self,
        min_gpu_vram_gb: float = 0.0,
        min_cpu_cores: int = 1,
        *,
        agent_type: str = DEFAULT_AGENT_TYPE,
        pool_name: str | None = None,
        gpu_type: GpuType | str | None = None,
        min_memory_gb: float = 0.0,
        max_age_s: float | None = None,
    ) -> Explanation:
        """As `CapacityClient.explain`."""
        query = query_of(
            min_gpu_vram_gb,
            min_cpu_cores,
            agent_type=agent_type,
            pool_name=pool_name,
            gpu_type=gpu_type,
            min_memory_gb=min_memory_gb,
            max_age_s=max_age_s,
            limit=None,
        )
        return await self._ask(lambda way: way.explain(query))

    async def fit(
        self,
        min_gpu_vram_gb: float = 0.0,
        min_cpu_cores: int = 1,
        *,
        agent_type: str = DEFAULT_AGENT_TYPE,
        pool_name: str | None = None,
    ) -> Fit:
        """As `CapacityClient.fit`."""
        query = query_of(
            min_gpu_vram_gb,
            min_cpu_cores,
            agent_type=agent_type,
            pool_name=pool_name,
            gpu_type=None,
            min_memory_gb=0.0,
            max_age_s=None,
            limit=None,
        )
        return await self._ask(lambda way: way.fit(query))

    async def summary(self, *, agent_type: str | None = None, pool_name: str | None = None) -> list[PoolTotals]:
        """As `CapacityClient.summary`."""
        rows: list[PoolTotals] = []
        after: str | None = None
        while True:
            ask = partial(async_summary_page, agent_type=agent_type, pool_name=pool_name, after=after)
            page, after = await self._ask(ask)
            rows += page
            if after is None:
                return rows

    async def events(
        self,
        *,
        agent_type: str | None = None,
        pool_name: str | None = None,
        kinds: Collection[ChangeKind | str] | None = None,
        after: StreamId | str | None = None,
    ) -> AsyncIterator[Change]:
        """As `CapacityClient.events`."""
        wanted, last = events_of(agent_type, pool_name, kinds, after)
        failures = 0
        while True:
            self._require_open()
            way = self._route.order()[0]
            try:
                async for change in way.events(wanted, last):
                    self._route.answered(way)
                    failures, last = 0, change.version
                    yield change
            except UnavailableError:
                self._route.failed(way)
                failures += 1
                if failures > len(self._route.ways):
                    raise

    async def get(self, agent_id: str | UUID) -> AgentCapacity:
        """As `CapacityClient.get`."""
        wanted = parse_agent_id(agent_id)
        agent = await self._ask(lambda way: way.get(wanted))
        if agent is None:
            raise AgentNotFoundError
        return agent

    async def ping(self) -> None:
        """As `CapacityClient.ping`."""
        await self._ask(lambda way: way.ping())

    async def close(self) -> None:
        """As `CapacityClient.close`."""
        self._closed = True
        for way in self._route.ways:
            await way.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _ask(self, call: Callable[[AsyncTransport], Awaitable[T]]) -> T:
        self._require_open()
        route, away = self._route, []
        for way in route.order():
            try:
                answer = await call(way)
            except UnavailableError as error:
                route.failed(way)
                away.append(error)
            else:
                route.answered(way)
                return answer
        if len(away) > 1:
            raise away[1] from away[0]
        raise away[0]

    def _require_open(self) -> None:
        if self._closed:
            raise RuntimeError("the client is closed")
        loop = self._running_loop()
        if self._loop is not loop:
            if self._loop is not None:
                raise RuntimeError("the client belongs to another event loop: make one for each")
            self._loop = loop
