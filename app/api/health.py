"""For operations: alive, ready, and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from app.api.answers import NO_STORE, answer
from app.api.documents import AliveDocument, PartDocument, ReadinessDocument
from app.api.wiring import wiring_of
from app.errors import UnavailableError


async def livez(_request: Request) -> Response:
    return answer(AliveDocument())


async def readyz(request: Request) -> Response:
    """Ready while either store can answer lookups."""
    wiring = wiring_of(request)
    index, record = await asyncio.gather(
        _probe(wiring.index.ping(), wiring.settings.redis_timeout_s),
        _probe(wiring.record.ping(), wiring.settings.database_timeout_s),
    )
    ready = "up" in {index.status, record.status}
    document = ReadinessDocument("ready" if ready else "not_ready", {"index": index, "record": record})
    return answer(document) if ready else answer(document, status=503, headers={**NO_STORE, "Retry-After": "2"})


async def system_health(request: Request) -> Response:
    return answer(await wiring_of(request).health.health())


async def metrics(request: Request) -> Response:
    await wiring_of(request).gauges.refresh()
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


async def _probe(ping: Awaitable[None], timeout_s: float) -> PartDocument:
    try:
        async with asyncio.timeout(timeout_s):
            await ping
    except UnavailableError as error:
        return PartDocument("away", error.code)
    except TimeoutError:
        return PartDocument("away", UnavailableError.code)
    return PartDocument("up")
