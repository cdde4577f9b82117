"""Lookups through the HTTP API, which answers from the record while the index is away."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from datetime import datetime
from typing import Final, TypeVar
from urllib.parse import parse_qs, urlsplit

import httpx
import msgspec

import app.errors
from app.client.stream import SILENT_AFTER_S, EventReader
from app.errors import AgentNotFoundError, HeadroomError, UnavailableError, UnexpectedAnswerError
from app.models.capacity import MAX_LIMIT, AgentCapacity, AvailableCapacity, CapacityPage, CapacityQuery, Source
from app.models.change import Change, EventFilter
from app.models.identity import AgentId, StreamId
from app.models.insight import Explanation, Fit, PoolTotals

T = TypeVar("T")

_API: Final = "/api/v1/agents"
_CAPACITY: Final = "/api/v1/capacity"
_EVENTS: Final = "/api/v1/events"
_LINK_NEXT: Final = re.compile(r'<([^>]*)>\s*;\s*rel="?next"?')
_CODE: Final = re.compile(r"[a-z_]{1,64}")

_KEPT: Final = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=5.0)
"""Idle connections are dropped soon: one that a firewall has forgotten would cost a call its timeout.
A bound that is left out is none at all."""

ERRORS: Final[Mapping[str, type[HeadroomError]]] = {
    error.code: error
    for error in vars(app.errors).values()
    if isinstance(error, type) and issubclass(error, HeadroomError)
}


class _Request(msgspec.Struct, frozen=True):
    path: str
    params: dict[str, str | int]
    wait_s: float = 0.0


class _Answer(msgspec.Struct, frozen=True):
    """Header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _Problem(msgspec.Struct, frozen=True):
    code: str = ""
    detail: str = ""


Requests = Generator[_Request, _Answer, T]
"""A lookup as the requests it makes: send it the answers."""

_rows = msgspec.json.Decoder(list[AvailableCapacity])
_agent = msgspec.json.Decoder(AgentCapacity)
_explanation = msgspec.json.Decoder(Explanation)
_fitting = msgspec.json.Decoder(Fit)
_totals = msgspec.json.Decoder(list[PoolTotals])
_problem = msgspec.json.Decoder(_Problem)


def _find(query: CapacityQuery, wait_s: float = 0.0) -> Requests[CapacityPage]:
    agents: list[AvailableCapacity] = []
    listed: set[AgentId] = set()
    params = _params(query)
    source: Source = "index"
    as_of: datetime | None = None
    total: int | None = None
    if wait_s > 0:
        params["wait_s"] = repr(float(wait_s))
    while True:
        params["limit"] = min(query.limit - len(agents), MAX_LIMIT)
        answer = yield _Request(f"{_API}/available-capacity", params, wait_s)
        if params.pop("wait_s", None):
            wait_s = 0.0
        for row in _decoded(_rows, answer):
            # An agent whose figures fell between two pages would be listed a second time.
            if row.agent_id not in listed:
                listed.add(row.agent_id)
                agents.append(row)
        if answer.headers.get("x-capacity-source") == "record":
            source, as_of = "record", _moment(answer.headers.get("x-capacity-as-of"))
        if total is None:
            total = _whole(answer.headers.get("x-total-count"))
        cursor = _next(answer.headers.get("link"), "cursor")
        if cursor is None or len(agents) >= query.limit:
            return CapacityPage(agents=agents, more=cursor is not None, total=total, source=source, as_of=as_of)
        if cursor == params.get("cursor"):
            raise UnexpectedAnswerError("A page leads to itself")
        params["cursor"] = cursor


def _get(agent_id: AgentId) -> Requests[AgentCapacity | None]:
    try:
        return _decoded(_agent, (yield _Request(f"{_API}/{agent_id}/capacity", {})))
    except AgentNotFoundError:
        return None


def _count(query: CapacityQuery) -> Requests[int]:
    page = yield from _find(msgspec.structs.replace(query, limit=1))
    if page.total is not None:
        return page.total
    if not page.more:
        return len(page.agents)
    page = yield from _find(msgspec.structs.replace(query, limit=sys.maxsize))
    return len(page.agents)


def _explain(query: CapacityQuery) -> Requests[Explanation]:
    return _decoded(_explanation, (yield _Request(f"{_CAPACITY}/explain", _params(query))))


def _fit(query: CapacityQuery) -> Requests[Fit]:
    return _decoded(_fitting, (yield _Request(f"{_CAPACITY}/fit", _params(query))))


def _summary(
    agent_type: str | None, pool_name: str | None, limit: int, after: str | None
) -> Requests[tuple[list[PoolTotals], str | None]]:
    named = {"agent_type": agent_type, "pool_name": pool_name, "after": after}
    params: dict[str, str | int] = {name: value for name, value in named.items() if value is not None}
    answer = yield _Request(f"{_CAPACITY}/summary", params | {"limit": limit})
    return _decoded(_totals, answer), _next(answer.headers.get("link"), "after")


def _event_params(wanted: EventFilter, after: StreamId | None) -> dict[str, str]:
    params = {
        "agent_type": wanted.agent_type,
        "pool_name": wanted.pool_name,
        "kinds": None if wanted.kinds is None else ",".join(sorted(wanted.kinds)),
        "after": None if after is None else str(after),
    }
    return {name: value for name, value in params.items() if value is not None}


def _ping() -> Requests[None]:
    answer = yield _Request("/livez", {})
    if answer.status != 200:
        raise _error(answer)


class HttpTransport:
    """Blocking. Threads may share it; a forked child makes its own connections."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self._url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._pid = os.getpid()
        self._client = self._open()

    def find(self, query: CapacityQuery, *, with_total: bool = False) -> CapacityPage:  # noqa: ARG002  it always is
        return self._run(_find(query))

    def wait(self, query: CapacityQuery, *, wait_s: float) -> CapacityPage:
        return self._run(_find(query, wait_s))

    def explain(self, query: CapacityQuery) -> Explanation:
        return self._run(_explain(query))

    def fit(self, query: CapacityQuery) -> Fit:
        return self._run(_fit(query))

    def summary(
        self, *, agent_type: str | None, pool_name: str | None, limit: int, after: str | None
    ) -> tuple[list[PoolTotals], str | None]:
        return self._run(_summary(agent_type, pool_name, limit, after))

    def events(self, wanted: EventFilter, after: StreamId | None) -> Iterator[Change]:
        timeout = httpx.Timeout(self._timeout_s, read=SILENT_AFTER_S)
        params = _event_params(wanted, after)
        # A connection of its own: it is in use for as long as anybody listens.
        with self._open() as client:
            try:
                with client.stream("GET", self._url + _EVENTS, params=params, timeout=timeout) as response:
                    if response.status_code != 200:
                        raise _error(_Answer(response.status_code, response.headers, response.read()))
                    reader = EventReader()
                    for line in response.iter_lines():
                        if (change := reader.read(line)) is not None:
                            yield change
            except httpx.HTTPError as error:
                raise _unreachable(error) from error
        raise UnavailableError("The API has ended the stream of events")

    def get(self, agent_id: AgentId) -> AgentCapacity | None:
        return self._run(_get(agent_id))

    def count(self, query: CapacityQuery) -> int:
        return self._run(_count(query))

    def ping(self) -> None:
        self._run(_ping())

    def close(self) -> None:
        self._client.close()

    def _run(self, requests: Requests[T]) -> T:
        if os.getpid() != self._pid:
            # The parent's connections stay the parent's: two processes would read each other's answers.
            self._pid, self._client = os.getpid(), self._open()
        try:
            request = next(requests)
            while True:
                request = requests.send(self._send(request))
        except StopIteration as end:
            result: T = end.value
            return result

    def _send(self, request: _Request) -> _Answer:
        for last in (False, True):
            try:
                response = self._client.get(
                    self._url + request.path, params=request.params, timeout=_patience(self._timeout_s, request)
                )
            except httpx.HTTPError as error:
                if last or not _lost(error):
                    raise _unreachable(error) from error
            else:
                return _Answer(response.status_code, response.headers, response.content)
        raise AssertionError("the last attempt returns or raises")

    def _open(self) -> httpx.Client:
        # A transport of its own: the proxies of the environment are for other machines.
        return httpx.Client(transport=httpx.HTTPTransport(limits=_KEPT), timeout=self._timeout_s)


class AsyncHttpTransport:
    """For one event loop, whose tasks may share it."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self._url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._client = httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(limits=_KEPT), timeout=timeout_s)

    async def find(self, query: CapacityQuery, *, with_total: bool = False) -> CapacityPage:  # noqa: ARG002  it is
        return await self._run(_find(query))

    async def wait(self, query: CapacityQuery, *, wait_s: float) -> CapacityPage:
        return await self._run(_find(query, wait_s))

    async def explain(self, query: CapacityQuery) -> Explanation:
        return await self._run(_explain(query))

    async def fit(self, query: CapacityQuery) -> Fit:
        return await self._run(_fit(query))

    async def summary(
        self, *, agent_type: str | None, pool_name: str | None, limit: int, after: str | None
    ) -> tuple[list[PoolTotals], str | None]:
        return await self._run(_summary(agent_type, pool_name, limit, after))

    async def events(self, wanted: EventFilter, after: StreamId | None) -> AsyncIterator[Change]:
        timeout = httpx.Timeout(self._timeout_s, read=SILENT_AFTER_S)
        params = _event_params(wanted, after)
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport()) as client:
            try:
                async with client.stream("GET", self._url + _EVENTS, params=params, timeout=timeout) as response:
                    if response.status_code != 200:
                        raise _error(_Answer(response.status_code, response.headers, await response.aread()))
                    reader = EventReader()
                    async for line in response.aiter_lines():
                        if (change := reader.read(line)) is not None:
                            yield change
            except httpx.HTTPError as error:
                raise _unreachable(error) from error
        raise UnavailableError("The API has ended the stream of events")

    async def get(self, agent_id: AgentId) -> AgentCapacity | None:
        return await self._run(_get(agent_id))

    async def count(self, query: CapacityQuery) -> int:
        return await self._run(_count(query))

    async def ping(self) -> None:
        await self._run(_ping())

    async def close(self) -> None:
        await self._client.aclose()

    async def _run(self, requests: Requests[T]) -> T:
        try:
            request = next(requests)
            while True:
                request = requests.send(await self._send(request))
        except StopIteration as end:
            result: T = end.value
            return result

    async def _send(self, request: _Request) -> _Answer:
        for last in (False, True):
            try:
                response = await self._client.get(
                    self._url + request.path, params=request.params, timeout=_patience(self._timeout_s, request)
                )
            except httpx.HTTPError as error:
                if last or not _lost(error):
                    raise _unreachable(error) from error
            else:
                return _Answer(response.status_code, response.headers, response.content)
        raise AssertionError("the last attempt returns or raises")


def _patience(timeout_s: float, request: _Request) -> httpx.Timeout:
    return httpx.Timeout(timeout_s, read=timeout_s + request.wait_s)


def _params(query: CapacityQuery) -> dict[str, str | int]:
    params: dict[str, str | int] = {
        "min_gpu_vram_gb": repr(float(query.min_gpu_vram_gb)),
        "min_cpu_cores": query.min_cpu_cores,
        "agent_type": query.agent_type,
    }
    if query.pool_name is not None:
        params["pool_name"] = query.pool_name
    if query.gpu_type is not None:
        params["gpu_type"] = query.gpu_type.value
    if query.min_memory_gb > 0:
        params["min_memory_gb"] = repr(float(query.min_memory_gb))
    if query.max_age_s is not None:
        params["max_age_s"] = repr(float(query.max_age_s))
    return params


def _decoded(decoder: msgspec.json.Decoder[T], answer: _Answer) -> T:
    if answer.status != 200:
        raise _error(answer)
    try:
        return decoder.decode(answer.body)
    except msgspec.DecodeError as error:
        raise UnexpectedAnswerError from error


def _error(answer: _Answer) -> HeadroomError:
    """The domain error that the server raised, as far as its answer tells."""
    retry_after_s = _whole(answer.headers.get("retry-after"))
    try:
        problem = _problem.decode(answer.body)
    except msgspec.DecodeError:
        problem = _Problem()
    known = ERRORS.get(problem.code)
    if known is not None:
        return known(problem.detail or None, retry_after_s=retry_after_s)
    detail = f"HTTP status {answer.status}"
    if _CODE.fullmatch(problem.code):
        detail += f", code {problem.code}"
    if answer.status in (429, 502, 503, 504):
        return UnavailableError(detail, retry_after_s=retry_after_s)
    return UnexpectedAnswerError(detail)


def _lost(error: httpx.HTTPError) -> bool:
    """Whether a kept connection turned out to be closed; a lookup may be repeated on a new one."""
    return isinstance(error, httpx.RemoteProtocolError | httpx.ReadError | httpx.WriteError)


def _unreachable(error: httpx.HTTPError) -> UnavailableError:
    if isinstance(error, httpx.TimeoutException):
        return UnavailableError("The API does not answer in time")
    return UnavailableError("The API does not answer")


def _next(link: str | None, parameter: str) -> str | None:
    """Where the next page begins; the rest of the link may have been written behind a proxy."""
    found = _LINK_NEXT.search(link or "")
    values = parse_qs(urlsplit(found[1]).query).get(parameter) if found else None
    return values[0] if values else None


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def _moment(text: str | None) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
