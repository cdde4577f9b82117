"""Figures about fleet, log and workers as gauges, read when somebody scrapes them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from app.errors import UnavailableError
from app.telemetry import (
    AGENTS,
    BACKLOG_AGE_SECONDS,
    BACKLOG_ENTRIES,
    CORES,
    DEAD_LETTER_ENTRIES,
    GROUP_WORKERS,
    INDEX_UP,
    LOG_ENTRIES,
    REAPER_UP,
    REDIS_MEMORY_BYTES,
    UNUSUAL_AGENTS,
    VRAM_BYTES,
)

if TYPE_CHECKING:
    from app.models.health import IndexHealth
    from app.models.insight import PoolTotals
    from app.service.ports import FleetInsight, HealthIndex

_MOST_POOLS: Final = 50
"""Pools beyond the largest ones share the label "other": their number has no bound. The sums hold all the same."""

_OTHER: Final = "other"
_GIB: Final = 2**30


class Gauges:
    """Sets the gauges anew; without an answer from Redis all but `headroom_index_up` keep nothing."""

    def __init__(self, insight: FleetInsight, health: HealthIndex, *, timeout_s: float) -> None:
        self._insight = insight
        self._health = health
        self._timeout_s = timeout_s

    async def refresh(self) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                health = await self._health.health()
                named, _ = await self._insight.summary(limit=_MOST_POOLS)
                overall = await self._insight.overall()
        except (UnavailableError, TimeoutError):
            # Old figures that look like new ones would hide the outage.
            for gauge in (AGENTS, VRAM_BYTES, CORES, BACKLOG_ENTRIES, BACKLOG_AGE_SECONDS, GROUP_WORKERS):
                gauge.clear()
            INDEX_UP.set(0)
            return
        INDEX_UP.set(1)
        _set_health(health)
        _set_totals([*named, *overall.beyond(named)])


def _set_health(health: IndexHealth) -> None:
    LOG_ENTRIES.set(health.log_entries)
    DEAD_LETTER_ENTRIES.set(health.dead_letters)
    REAPER_UP.set(health.reaper)
    REDIS_MEMORY_BYTES.set(health.memory_bytes)
    UNUSUAL_AGENTS.labels(how="flapping").set(health.flapping)
    UNUSUAL_AGENTS.labels(how="cloned").set(health.cloned)
    for group in health.groups:
        BACKLOG_ENTRIES.labels(group=group.group).set(group.backlog_entries)
        BACKLOG_AGE_SECONDS.labels(group=group.group).set(group.backlog_age_s)
        GROUP_WORKERS.labels(group=group.group).set(group.workers)


def _set_totals(rows: list[PoolTotals]) -> None:
    for gauge in (AGENTS, VRAM_BYTES, CORES):
        gauge.clear()
    for row in rows:
        labels = {"agent_type": row.agent_type, "pool": row.pool_name or _OTHER, "gpu_type": row.gpu_type.value}
        for status in ("online", "busy", "offline", "cordoned", "placeable"):
            AGENTS.labels(**labels, status=status).inc(getattr(row, status))
        VRAM_BYTES.labels(**labels, kind="free").inc(row.gpu_vram_available_gb * _GIB)
        VRAM_BYTES.labels(**labels, kind="total").inc(row.gpu_vram_total_gb * _GIB)
        CORES.labels(**labels, kind="free").inc(row.cpu_cores_available)
        CORES.labels(**labels, kind="physical").inc(row.cpu_cores_physical)
