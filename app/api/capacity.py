"""`GET /api/v1/agents/available-capacity`: who has at least this much free?"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import datetime
from typing import Any, Final, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive

from app.api.answers import NO_STORE, answer, next_link
from app.api.cursor import CURSOR_PATTERN, decode_cursor, encode_cursor
from app.api.documents import AvailableCapacityDocument, iso
from app.api.fields import MAX_POOL_NAME
from app.api.query import Parameter, choice, number, read_query, text, whole
from app.api.wiring import wiring_of
from app.models.capacity import (
    DEFAULT_LIMIT,
    MAX_AGE_S,
    MAX_LIMIT,
    MAX_MIN_CORES,
    MAX_WAIT_S,
    CapacityQuery,
    GpuType,
    Source,
)
from app.models.identity import AGENT_TYPE_PATTERN, DEFAULT_AGENT_TYPE

T = TypeVar("T")

CLIENT_GONE: Final = 499
"""Nobody reads it; proxies know the number from nginx."""

FIND_PARAMETERS: Final = (
    number("min_gpu_vram_gb", "Free memory of one GPU, in GiB.", default=0.0),
    whole("min_cpu_cores", "Free cores.", least=1, most=MAX_MIN_CORES, default=1),
    text("agent_type", "Kind of agent.", longest=32, pattern=AGENT_TYPE_PATTERN, default=DEFAULT_AGENT_TYPE),
    text("pool_name", "Only agents of this pool.", longest=MAX_POOL_NAME),
    choice("gpu_type", "Only agents with this kind of GPU.", GpuType),
    number("min_memory_gb", "Free main memory, in GiB.", default=0.0),
    number("max_age_s", "Only agents heard of within so many seconds.", most=MAX_AGE_S),
    whole("limit", "Most agents in one answer.", least=1, most=MAX_LIMIT, default=DEFAULT_LIMIT),
    number(
        "wait_s",
        "If nothing fits, wait for so many seconds until something does.",
        most=MAX_WAIT_S,
        default=0.0,
    ),
    Parameter(
        name="cursor",
        description="From the `Link` header of the page before.",
        read=decode_cursor,
        schema={"type": "string", "pattern": CURSOR_PATTERN},
    ),
)


async def find_available_capacity(request: Request) -> Response:
    sent: dict[str, Any] = read_query(request, FIND_PARAMETERS)
    after, wait_s = sent.pop("cursor", None), sent.pop("wait_s", 0.0)
    query = CapacityQuery(after=after, **sent)
    wiring = wiring_of(request)
    if wait_s > 0:
        waited = await _unless_gone(request, wiring.waiting.find(query, wait_s=wait_s))
        if waited is None:
            return Response(status_code=CLIENT_GONE)
        page = waited
    else:
        page = await wiring.orchestrator.find(query)
    headers = source_headers(page.source, page.as_of)
    if page.total is not None:
        headers["X-Total-Count"] = str(page.total)
    if page.cursor is not None:
        headers["Link"] = next_link(request, sent, cursor=encode_cursor(page.cursor))
    return answer([AvailableCapacityDocument.of(agent) for agent in page.agents], headers=headers)


async def until_gone(receive: Receive) -> None:
    """Returns once the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _unless_gone(request: Request, answering: Coroutine[Any, Any, T]) -> T | None:
    """The answer, or None once nobody is there to read it: whoever waited in vain lets go of everything."""
    task = asyncio.create_task(answering)
    gone = asyncio.create_task(until_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.gather(gone, task, return_exceptions=True)


def source_headers(source: Source, as_of: datetime | None) -> dict[str, str]:
    """Says so where the answer comes from the record, and how old it may be."""
    headers = dict(NO_STORE)
    if source == "record":
        headers["X-Capacity-Source"] = source
        if as_of is not None:
            headers["X-Capacity-As-Of"] = iso(as_of)
    return headers
