"""Waiting for capacity: a search that finds nothing now is answered as soon as something fits.

Look, register, look again: a change between the first look and the registration is seen by the second look, one
after it by the feed. Whatever goes wrong with the feed, every search is looked at now and then all the same.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Final

import msgspec

from app.errors import IndexUnavailableError, TooManyWaitingError, UnavailableError
from app.models.capacity import CapacityPage, CapacityQuery, check_query
from app.models.change import Change, ChangeKind
from app.service.feed import FeedHub
from app.service.orchestrator import OrchestratorService
from app.service.thresholds import Thresholds
from app.telemetry import WAITER_LOOKS, WAITERS, WAITERS_VRAM_BYTES

log = logging.getLogger(__name__)

_AT_ONCE: Final = 16
_LOOK_EVERY_S: Final = 5.0
_WANT_EVERY_S: Final = 5.0
_LOOKS_PER_S: Final = 200.0
"""With more distinct searches than this allows every 5 s, each is looked at less often."""

_FUTILE: Final = 3
_GIB: Final = 2**30
_MOST_GB: Final = 2.0**20
"""What a search asks for beyond this counts as so much: no device has it, and the sum must stay a number."""
_LONGEST_PAUSE_S: Final = 1.0

Pause = Callable[[str], Awaitable[None]]


async def no_pause(_point: str) -> None:
    """Stands at the points where a test may interleave what it likes."""


@dataclass(eq=False, slots=True)
class _Group:
    """Everybody who waits for the same."""

    query: CapacityQuery
    waiters: set[asyncio.Future[CapacityPage]] = field(default_factory=set)
    page: CapacityPage | None = None
    away: UnavailableError | None = None
    looking: asyncio.Task[None] | None = None
    again: bool = False
    futile: int = 0
    rest_until: float = 0.0
    closed: bool = False
    since: float = field(default_factory=time.monotonic)


class WaitingSearch(msgspec.Struct, frozen=True, kw_only=True):
    """What is waited for, by how many, and since when the first of them began."""

    query: CapacityQuery
    waiters: int
    longest_wait_s: float


class WaitingService:
    """Searches that may wait. Equal searches share one look; a loop of the API process looks now and then.

    Args:
        orchestrator: answers a search.
        hub: tells of changes.
        most: waiters at a time; more are refused.
        look_every_s: the safety net's rhythm for each distinct search.
        pause: awaited with `looked` between the first look and the registration, and with `registered` between
            the registration and the second look; for tests.
    """

    name = "waiting"
    pause_s = 0.0

    def __init__(
        self,
        orchestrator: OrchestratorService,
        hub: FeedHub,
        *,
        most: int = 8_000,
        look_every_s: float = _LOOK_EVERY_S,
        pause: Pause = no_pause,
    ) -> None:
        self._orchestrator = orchestrator
        self._hub = hub
        self._most = most
        self._look_every_s = look_every_s
        self._pause = pause
        self._groups: dict[CapacityQuery, _Group] = {}
        self._thresholds: dict[tuple[str, str | None], Thresholds] = {}
        self._waiting = 0
        self._waited_for_bytes = 0
        self._looks = asyncio.Semaphore(_AT_ONCE)
        self._due: list[tuple[float, int, _Group]] = []
        self._ticket = count()
        self._draining = False
        self._want_at = 0.0

    async def find(self, query: CapacityQuery, *, wait_s: float) -> CapacityPage:
        """As `OrchestratorService.find`, but an answer without agents is given only after `wait_s`.

        Raises:
            TooManyWaitingError: nothing fits now, and no more may wait here.
            UnavailableError: nobody can tell, now or at the end.
        """
        check_query(query)
        deadline = time.monotonic() + wait_s
        group = self._groups.get(query)
        if wait_s <= 0 or group is None or not self._hub.live:
            page = await self._search(query)
            if page.agents or wait_s <= 0:
                return page
        if self._waiting >= self._most or self._draining:
            raise TooManyWaitingError
        await self._pause("looked")
        self._count(query, 1)
        try:
            return await self._wait(query, deadline)
        finally:
            self._count(query, -1)

    def searches(self, *, limit: int) -> list[WaitingSearch]:
        """What is waited for in this process, longest first."""
        now = time.monotonic()
        longest = heapq.nsmallest(limit, self._groups.values(), key=lambda group: group.since)
        return [
            WaitingSearch(query=group.query, waiters=len(group.waiters), longest_wait_s=now - group.since)
            for group in longest
        ]

    def drain(self) -> None:
        """Lets everybody go, since this process ends: they are to ask another one."""
        self._draining = True
        for group in tuple(self._groups.values()):
            self._fail(group, TooManyWaitingError("This process ends", retry_after_s=1.0))

    def take(self, changes: Sequence[Change]) -> None:
        """From the feed: wakes the searches that a change may concern."""
        for change in changes:
            if change.kind in {ChangeKind.RESET, ChangeKind.REBUILD}:
                self._wake(tuple(self._groups.values()))
            elif change.placeable:
                for pool in (None, change.pool_name):
                    thresholds = self._thresholds.get((change.agent_type, pool))
                    if thresholds is not None:
                        met = thresholds.met_by(change.gpu_vram_available_gb, change.cpu_cores_available)
                        self._wake([self._groups[query] for query in met])

    async def run_once(self) -> None:
        """One round of the safety net."""
        await asyncio.sleep(min(0.1, self._look_every_s / 2))
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            _, _, group = heapq.heappop(self._due)
            if not group.closed:
                group.futile = 0
                self._wake([group])
                self._schedule(group)
        if self._groups and not self._hub.live:
            await self._join_hub()
        if now >= self._want_at:
            self._want_at = now + _WANT_EVERY_S
            amounts_gb = {query.min_memory_gb for query in self._groups if query.min_memory_gb}
            if amounts_gb:
                await self._want_memory(sorted(amounts_gb))

    def _count(self, query: CapacityQuery, change: int) -> None:
        self._waiting += change
        # Whole bytes: a sum of floats would drift away from 0 over the years.
        self._waited_for_bytes += change * round(min(query.min_gpu_vram_gb, _MOST_GB) * _GIB)
        WAITERS.set(self._waiting)
        WAITERS_VRAM_BYTES.set(self._waited_for_bytes)

    async def _wait(self, query: CapacityQuery, deadline: float) -> CapacityPage:
        group = self._groups.get(query)
        if group is None:
            group = self._open(query)
        waiter: asyncio.Future[CapacityPage] = asyncio.get_running_loop().create_future()
        group.waiters.add(waiter)
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                return await waiter
        except TimeoutError:
            if group.away is not None:
                raise group.away from None
            empty = CapacityPage(agents=[], total=0 if query.counted else None)
            return empty if group.page is None else msgspec.structs.replace(group.page, agents=[], more=False)
        finally:
            group.waiters.discard(waiter)
            if not group.waiters:
                self._close(group)

    async def _search(self, query: CapacityQuery) -> CapacityPage:
        """To the end: a search with filters stops early after very many agents that they refused."""
        page = await self._orchestrator.find(query)
        while not page.agents and page.cursor is not None:
            page = await self._orchestrator.find(msgspec.structs.replace(query, after=page.cursor))
        return page

    async def _join_hub(self) -> None:
        try:
            await self._hub.join(self)
        except IndexUnavailableError:
            log.debug("Waiting without the feed: every search is looked at now and then")
        if not self._groups:
            self._hub.leave(self)

    async def _want_memory(self, amounts_gb: Sequence[float]) -> None:
        try:
            await self._hub.want_memory(amounts_gb)
        except IndexUnavailableError:
            log.debug("The feed tells of no memory: searches for it are looked at now and then")

    def _open(self, query: CapacityQuery) -> _Group:
        group = self._groups[query] = _Group(query)
        self._thresholds.setdefault((query.agent_type, query.pool_name), Thresholds()).add(query)
        self._schedule(group)
        # The group's, not the first waiter's: those who join it rely on the second look as well.
        group.looking = asyncio.create_task(self._enter(group), name="waiting-look")
        return group

    async def _enter(self, group: _Group) -> None:
        try:
            await self._join_hub()
            if group.query.min_memory_gb:
                await self._want_memory([group.query.min_memory_gb])
            await self._pause("registered")
        except Exception as unforeseen:  # noqa: BLE001  # theirs to answer: nobody awaits this task
            group.looking = None
            self._fail(group, unforeseen)
            return
        await self._look(group)

    def _close(self, group: _Group) -> None:
        if group.closed:
            return
        group.closed = True
        query = group.query
        del self._groups[query]
        place = (query.agent_type, query.pool_name)
        self._thresholds[place].remove(query)
        if not self._thresholds[place]:
            del self._thresholds[place]
        if not self._groups:
            self._due.clear()
            self._hub.leave(self)

    def _schedule(self, group: _Group) -> None:
        every_s = max(self._look_every_s, len(self._groups) / _LOOKS_PER_S)
        due = time.monotonic() + every_s * random.uniform(0.75, 1.25)  # noqa: S311  # spread, no secret
        heapq.heappush(self._due, (due, next(self._ticket), group))

    def _wake(self, groups: Iterable[_Group]) -> None:
        for group in groups:
            if group.looking is not None:
                # The look under way may have read what was there before.
                group.again = True
            elif not group.closed:
                group.looking = asyncio.create_task(self._look(group), name="waiting-look")

    async def _look(self, group: _Group) -> None:
        try:
            while not group.closed:
                await asyncio.sleep(max(0.0, group.rest_until - time.monotonic()))
                group.again = False
                await self._look_once(group)
                if not group.again:
                    return
        finally:
            group.looking = None

    async def _look_once(self, group: _Group) -> None:
        async with self._looks:
            WAITER_LOOKS.inc()
            try:
                page = await self._search(group.query)
            except UnavailableError as away:
                group.away = away
                return
            except Exception as unforeseen:  # noqa: BLE001  # theirs to answer: nobody awaits this task
                self._fail(group, unforeseen)
                return
        group.page, group.away = page, None
        if not page.agents:
            if not group.query.counted:
                # The feed knows nothing of these filters: every change may look promising.
                group.futile = min(group.futile + 1, 10)
                rest_s = 0.01 * 2**group.futile if group.futile > _FUTILE else 0.0
                group.rest_until = time.monotonic() + min(rest_s, _LONGEST_PAUSE_S)
            return
        for waiter in group.waiters:
            if not waiter.done():
                waiter.set_result(page)
        self._close(group)

    def _fail(self, group: _Group, error: Exception) -> None:
        for waiter in group.waiters:
            if not waiter.done():
                waiter.set_exception(error)
        self._close(group)
