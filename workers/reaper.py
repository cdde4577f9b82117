"""Reaper: silence -> offline. Any number may run; a lease lets one act at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from app.index.lookup import SWEEP_SLICE
from app.telemetry import MASS_SILENCE, SWEPT, logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from app.index.stream import StreamUpkeep
    from app.index.upkeep import Upkeep
    from workers.clock_watch import ClockWatch

_LEASE_S: Final = 5.0
_HOUSEKEEPING_EVERY_S: Final = 10.0

_log = logger(__name__)


class Reaper:
    """One round a second: take silent agents out of the sets, then declare them offline.

    Declaring waits while there is a grace: after Redis or all receivers were away, or the clock was set, agents
    must first have had the time to report.

    Args:
        watch: the one that also looks all the time in this process.
    """

    name = "reaper"

    def __init__(self, upkeep: Upkeep, holder: str, *, every_s: float, watch: ClockWatch) -> None:
        self._upkeep = upkeep
        self._holder = holder
        self._watch = watch
        self.pause_s = every_s

    async def run_once(self) -> None:
        if await self._upkeep.lease(self.name, self._holder, ttl_s=max(_LEASE_S, 3 * self.pause_s)):
            await self.sweep()
        else:
            # Whoever has the lease says so.
            MASS_SILENCE.set(0)

    async def sweep(self) -> int:
        """Does all that is due now, slice by slice; returns how many agents were declared offline.

        Nothing is due before the rebuild after an outage of Redis: the grace that is for the agents' return
        begins with it, and in the index they have all been silent for as long as Redis was away.
        """
        # A step of Redis's clock looks like silence, and whoever is declared offline for it stays so.
        await self._watch.look()
        if await self._upkeep.current_epoch() is None:
            MASS_SILENCE.set(0)
            return 0
        taken_out = await _all_slices(self._upkeep.sweep)
        if taken_out:
            SWEPT.inc(taken_out)
            _log.info("Took silent agents out of the index", agents=taken_out)
        await _all_slices(self._upkeep.expire_cordons)
        declared = 0
        while True:
            done = await self._upkeep.declare()
            declared += done.agents
            if not done.more:
                break
        MASS_SILENCE.set(done.braked)
        if done.braked:
            _log.error("Most of the fleet fell silent at once: declaring it offline slowly", declared=declared)
        elif declared:
            _log.info("Declared silent agents offline", agents=declared)
        return declared


class Housekeeping:
    """Now and then: trims the stream, forgets consumers that are gone and agents that are long offline."""

    name = "housekeeping"
    pause_s = _HOUSEKEEPING_EVERY_S

    def __init__(self, upkeep: Upkeep, stream: StreamUpkeep, holder: str) -> None:
        self._upkeep = upkeep
        self._stream = stream
        self._holder = holder

    async def run_once(self) -> None:
        if await self._upkeep.lease(self.name, self._holder, ttl_s=2 * _HOUSEKEEPING_EVERY_S):
            await self.tidy()

    async def tidy(self) -> None:
        """Does all that is due now, slice by slice."""
        # Redis trims a bounded number of entries a call: fewer than a large fleet adds between two rounds.
        while await self._stream.trim():
            pass
        await self._stream.forget_consumers()
        await self._upkeep.forget_marks()
        dropped = kept = 0
        more = True
        while more:
            expired = await self._upkeep.expire(skip=kept)
            dropped += expired.dropped
            kept += expired.kept
            more = expired.more
        if dropped:
            _log.info("Dropped agents from the index that have been offline for long", agents=dropped)


async def _all_slices(slice_once: Callable[[], Awaitable[int]]) -> int:
    """Repeats a bounded slice until it was not full; Redis serves others in between."""
    total = 0
    while True:
        done = await slice_once()
        total += done
        if done < SWEEP_SLICE:
            return total
