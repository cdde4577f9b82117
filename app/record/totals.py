"""Totals of the fleet over time: one sample a slot, thinned when they are read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from sqlalchemy import ColumnElement, delete, func, select

from app.models.insight import PoolTotals, TotalsBy, TrendPoint, TrendQuery, TrendSeries
from app.record.bulk import Bulk, Row
from app.record.connect import Database
from app.record.fold import slot_of
from app.record.tables import fleet_history
from app.settings import Settings

_MOST_SERIES: Final = 50
_MOST_POINTS: Final = 288
_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 86_400_000

_totals: Final = fleet_history.c
_SUMS: Final = (
    func.max(_totals.at_ms).label("at_ms"),
    func.sum(_totals.online).label("online"),
    func.sum(_totals.placeable).label("placeable"),
    func.sum(_totals.gpu_vram_available_gb).label("gpu_vram_available_gb"),
    func.sum(_totals.gpu_vram_total_gb).label("gpu_vram_total_gb"),
    func.sum(_totals.cpu_cores_available).label("cpu_cores_available"),
    func.sum(_totals.cpu_cores_physical).label("cpu_cores_physical"),
)


class RecordedTotals:
    """Implements TotalsRecord."""

    def __init__(self, database: Database, bulk: Bulk, settings: Settings) -> None:
        self._database = database
        self._bulk = bulk
        self._slot_length_ms = max(1, round(settings.history_every_s * 1000))
        self._keep_ms = round(settings.history_keep_d * _DAY_MS)

    async def keep(self, totals: Sequence[PoolTotals], *, at_ms: int) -> None:
        slot_ms = slot_of(at_ms, self._slot_length_ms)
        async with self._database.writing() as connection:
            await self._bulk.insert(
                connection, fleet_history, [_row(slot_ms, at_ms, one) for one in totals], newer_by=("at_ms",)
            )
            # A slot's worth goes with each slot that comes; the key begins with the time, so it is found at once.
            await connection.execute(delete(fleet_history).where(_totals.slot_ms < at_ms - self._keep_ms))

    async def trend(self, query: TrendQuery, *, until_ms: int) -> list[TrendSeries]:
        since_ms = until_ms - round(query.hours * _HOUR_MS)
        conditions = [_totals.slot_ms >= since_ms, _totals.slot_ms <= until_ms, *_conditions(query)]
        every_ms = self._slot_length_ms * math.ceil((until_ms - since_ms) / _MOST_POINTS / self._slot_length_ms)
        # One series of everything has no name, and nothing to group by but the time.
        names = [] if query.by is None else [_totals[query.by.value]]
        async with self._database.reading() as connection:
            newest = await connection.scalar(select(func.max(_totals.slot_ms)).where(*conditions))
            if newest is None:
                return []
            conditions.append((_totals.slot_ms % every_ms == 0) | (_totals.slot_ms == newest))
            series = {"": TrendSeries(name="", points=[])}
            if query.by is TotalsBy.POOL_NAME:
                # What the sampler adds up of pools beyond the largest has no name.
                conditions.append(_totals.pool_name != "")
            for name in names:
                largest = await connection.scalars(
                    select(name)
                    .where(*conditions, _totals.slot_ms == newest)
                    .group_by(name)
                    .order_by(func.sum(_totals.gpu_vram_total_gb).desc(), func.sum(_totals.online).desc(), name)
                    .limit(_MOST_SERIES)
                )
                series = {one: TrendSeries(name=one, points=[]) for one in largest}
                conditions.append(name.in_(list(series)))
            points = await connection.execute(
                select(*names, *_SUMS)
                .where(*conditions)
                .group_by(*names, _totals.slot_ms)
                .order_by(_totals.slot_ms)
            )
            for row in points:
                name_of_row = row[0] if names else ""
                values = dict(zip(TrendPoint.__struct_fields__, row[len(names) :], strict=True))
                series[name_of_row].points.append(TrendPoint(**values))
        return list(series.values())


def _conditions(query: TrendQuery) -> list[ColumnElement[bool]]:
    exact = {"agent_type": query.agent_type, "pool_name": query.pool_name, "gpu_type": query.gpu_type}
    return [_totals[name] == str(value) for name, value in exact.items() if value is not None]


def _row(slot_ms: int, at_ms: int, totals: PoolTotals) -> Row:
    return {
        "slot_ms": slot_ms,
        "agent_type": totals.agent_type,
        "pool_name": totals.pool_name,
        "gpu_type": totals.gpu_type.value,
        "at_ms": at_ms,
        "online": totals.online,
        "placeable": totals.placeable,
        "gpu_vram_available_gb": totals.gpu_vram_available_gb,
        "gpu_vram_total_gb": totals.gpu_vram_total_gb,
        "cpu_cores_available": totals.cpu_cores_available,
        "cpu_cores_physical": totals.cpu_cores_physical,
    }
