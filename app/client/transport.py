"""The ways to an answer, blocking and not: straight to Redis, or through the HTTP API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Final, Protocol
from urllib.parse import urlsplit

from app.models.capacity import AgentCapacity, CapacityPage, CapacityQuery
from app.models.change import Change, EventFilter
from app.models.identity import AgentId, StreamId
from app.models.insight import Explanation, Fit, PoolTotals

_REDIS: Final = ("redis", "rediss", "unix")
_HTTP: Final = ("http", "https")
_SUMMARY_PAGE: Final = 1_000


class Transport(Protocol):
    """Every call may raise a domain error; UnavailableError where another way may still have an answer."""

    def find(self, query: CapacityQuery, *, with_total: bool = False) -> CapacityPage: ...

    def wait(self, query: CapacityQuery, *, wait_s: float) -> CapacityPage: ...

    def explain(self, query: CapacityQuery) -> Explanation: ...

    def fit(self, query: CapacityQuery) -> Fit: ...

    def summary(
        self, *, agent_type: str | None, pool_name: str | None, limit: int, after: str | None
    ) -> tuple[list[PoolTotals], str | None]: ...

    def events(self, wanted: EventFilter, after: StreamId | None) -> Iterator[Change]: ...

    def get(self, agent_id: AgentId) -> AgentCapacity | None: ...

    def count(self, query: CapacityQuery) -> int: ...

    def ping(self) -> None: ...

    def close(self) -> None: ...


class AsyncTransport(Protocol):
    async def find(self, query: CapacityQuery, *, with_total: bool = False) -> CapacityPage: ...

    async def wait(self, query: CapacityQuery, *, wait_s: float) -> CapacityPage: ...

    async def explain(self, query: CapacityQuery) -> Explanation: ...

    async def fit(self, query: CapacityQuery) -> Fit: ...

    async def summary(
        self, *, agent_type: str | None, pool_name: str | None, limit: int, after: str | None
    ) -> tuple[list[PoolTotals], str | None]: ...

    def events(self, wanted: EventFilter, after: StreamId | None) -> AsyncIterator[Change]: ...

    async def get(self, agent_id: AgentId) -> AgentCapacity | None: ...

    async def count(self, query: CapacityQuery) -> int: ...

    async def ping(self) -> None: ...

    async def close(self) -> None: ...


def open_transport(url: str, *, timeout_s: float) -> Transport:
    """Nothing is sent before the first call, but the library for the URL is imported here, not during it."""
    if _is_redis(url):
        from app.index.direct import DirectIndex  # noqa: PLC0415  planners on HTTP need no redis

        return DirectIndex(url, timeout_s=timeout_s)
    from app.client.http import HttpTransport  # noqa: PLC0415  planners on Redis need no httpx

    return HttpTransport(url, timeout_s=timeout_s)


def open_async_transport(url: str, *, timeout_s: float) -> AsyncTransport:
    """As `open_transport`."""
    if _is_redis(url):
        from app.index.direct import AsyncDirectIndex  # noqa: PLC0415  as above

        return AsyncDirectIndex(url, timeout_s=timeout_s)
    from app.client.http import AsyncHttpTransport  # noqa: PLC0415  as above

    return AsyncHttpTransport(url, timeout_s=timeout_s)


def summary_page(
    way: Transport, *, agent_type: str | None, pool_name: str | None, after: str | None
) -> tuple[list[PoolTotals], str | None]:
    return way.summary(agent_type=agent_type, pool_name=pool_name, limit=_SUMMARY_PAGE, after=after)


def async_summary_page(
    way: AsyncTransport, *, agent_type: str | None, pool_name: str | None, after: str | None
) -> Awaitable[tuple[list[PoolTotals], str | None]]:
    return way.summary(agent_type=agent_type, pool_name=pool_name, limit=_SUMMARY_PAGE, after=after)


def _is_redis(url: str) -> bool:
    scheme = urlsplit(url).scheme
    if scheme not in (*_REDIS, *_HTTP):
        raise ValueError(f"the URL begins with none of {', '.join(f'{name}://' for name in (*_REDIS, *_HTTP))}")
    return scheme in _REDIS
