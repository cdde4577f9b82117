"""Clock watch: notices that Redis's clock was set, by holding it against a steady one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from app.index.lookup import SWEEP_SLICE
from app.index.upkeep import JUMP_TOLERANCE_MS
from app.telemetry import CLOCK_JUMPS, logger

if TYPE_CHECKING:
    from app.index.upkeep import Upkeep

_log = logger(__name__)


class ClockWatch:
    """One round: has the distance between both clocks changed since the round before?

    Runs in every API, ingest and reaper process: the sooner a jump is known, the fewer lookups judge by a wrong
    time. Whom they took out meanwhile any process puts back: the first to notice may die over it. A process has
    one watch, for its loop and for its reaper: a second one could note the same jump much later, as another.
    """

    name = "clock-watch"
    pause_s = 0.5

    def __init__(self, upkeep: Upkeep) -> None:
        self._upkeep = upkeep
        self._distance_ms: int | None = None
        self._looking = asyncio.Lock()

    async def run_once(self) -> None:
        await self.look()

    async def look(self) -> None:
        """Several may at once: each compares with what the one before has seen and noted."""
        async with self._looking:
            await self._compare()

    async def _compare(self) -> None:
        asked_ms = self._upkeep.steady_ms()
        distance_ms = await self._upkeep.now_ms() - asked_ms
        if self._upkeep.steady_ms() - asked_ms > JUMP_TOLERANCE_MS:
            # A server, or this process, that stood still between the two looks like a clock that was set.
            return
        before = self._distance_ms
        if before is not None and abs(distance_ms - before) > JUMP_TOLERANCE_MS:
            shift_ms = distance_ms - before
            if await self._upkeep.note_jump(shift_ms):
                CLOCK_JUMPS.inc()
                _log.error("Redis's clock was set", shift_s=round(shift_ms / 1000, 1))
        # Only now: a jump that could not be noted is there to be noticed in the next round.
        self._distance_ms = distance_ms
        while await self._upkeep.readmit() == SWEEP_SLICE:
            pass
