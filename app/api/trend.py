"""`GET /api/v1/capacity/trend`: totals over time, from the record."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from app.api.answers import answer
from app.api.documents import iso
from app.api.fields import MAX_POOL_NAME
from app.api.query import choice, number, read_query, text
from app.api.wiring import wiring_of
from app.models.capacity import GpuType
from app.models.identity import AGENT_TYPE_PATTERN
from app.models.insight import TotalsBy, TrendPoint, TrendQuery, TrendSeries

DEFAULT_HOURS: Final = 24.0
MAX_HOURS: Final = 744.0

TREND_PARAMETERS: Final = (
    choice("by", "What series are made of; one series of everything when left out.", TotalsBy),
    number("hours", "How far back.", most=MAX_HOURS, default=DEFAULT_HOURS),
    text("agent_type", "Only this kind of agent.", longest=32, pattern=AGENT_TYPE_PATTERN),
    text("pool_name", "Only this pool.", longest=MAX_POOL_NAME),
    choice("gpu_type", "Only this kind of GPU.", GpuType),
)


class TrendPointDocument(msgspec.Struct, frozen=True, array_like=True):
    """One point as a list, in the order of `fields`."""

    at_ms: int
    online: int
    placeable: int
    gpu_vram_available_gb: float
    gpu_vram_total_gb: float
    cpu_cores_available: int
    cpu_cores_physical: int

    @classmethod
    def of(cls, point: TrendPoint) -> TrendPointDocument:
        return cls(*msgspec.structs.astuple(point))


class TrendSeriesDocument(msgspec.Struct, frozen=True):
    """`name`: of the pool or the GPU type, empty for one series of everything."""

    name: str
    points: list[TrendPointDocument]

    @classmethod
    def of(cls, series: TrendSeries) -> TrendSeriesDocument:
        return cls(series.name, [TrendPointDocument.of(point) for point in series.points])


class TrendDocument(msgspec.Struct, frozen=True):
    since: str
    until: str
    fields: tuple[str, ...]
    series: list[TrendSeriesDocument]


async def get_trend(request: Request) -> Response:
    sent: dict[str, Any] = read_query(request, TREND_PARAMETERS)
    query = TrendQuery(**sent)
    wiring = wiring_of(request)
    now_ms = wiring.clock.now_ms()
    series = await wiring.totals.trend(query, until_ms=now_ms)
    until = datetime.fromtimestamp(now_ms / 1000, UTC)
    return answer(
        TrendDocument(
            iso(until - timedelta(hours=query.hours)),
            iso(until),
            TrendPointDocument.__struct_fields__,
            [TrendSeriesDocument.of(one) for one in series],
        )
    )
