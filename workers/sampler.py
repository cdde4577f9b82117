"""Sampler: totals of the fleet, from the index to the record, for lines over time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from app.index.upkeep import Upkeep
    from app.models.insight import PoolTotals
    from app.service.ports import FleetInsight, TotalsRecord

_MOST_POOLS: Final = 200
"""Kept one by one; more would make a table of totals larger than that of the agents. The others go in as one."""

_LONGEST_PAUSE_S: Final = 60.0


class Sampler:
    """One round: read the totals and keep them. Any number may run: of each time slot the newest sample stays."""

    name = "sampler"

    def __init__(self, insight: FleetInsight, upkeep: Upkeep, record: TotalsRecord, *, every_s: float) -> None:
        self._insight = insight
        self._upkeep = upkeep
        self._record = record
        self.pause_s = min(every_s, _LONGEST_PAUSE_S)

    async def run_once(self) -> None:
        await self.sample()

    async def sample(self) -> None:
        at_ms = await self._upkeep.now_ms()
        totals: list[PoolTotals]
        totals, _ = await self._insight.summary(limit=_MOST_POOLS)
        if totals:
            overall = await self._insight.overall()
            await self._record.keep([*totals, *overall.beyond(totals)], at_ms=at_ms)
