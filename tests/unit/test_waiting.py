"""Waiting over an index and a feed that a test plays: who is woken, when, and what it costs."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from unittest.mock import AsyncMock

import pytest

from app.errors import (
    IndexUnavailableError,
    InvalidQueryError,
    RecordUnavailableError,
    TooManyWaitingError,
    UnavailableError,
)
from app.models.capacity import AgentStatus, AvailableCapacity, CapacityPage, CapacityQuery, GpuType
from app.models.change import Change, ChangeKind
from app.models.identity import AgentId, StreamId
from app.service.clock import SystemClock
from app.service.feed import FeedHub
from app.service.orchestrator import OrchestratorService
from app.service.waiting import WaitingService, no_pause
from tests.indexing import agent_id
from tests.waiting import PATIENCE_S, wait_until_async
from workers.runner import running

Q = CapacityQuery

LONG_S = 300.0
"""The longest wait there is, far above PATIENCE_S and pytest's own limit."""


class PlayedIndex:
    """An index of one type without pools, and its feed."""

    def __init__(self) -> None:
        self.free: dict[AgentId, tuple[float, int]] = {}
        self.away = False
        self.feed_away = False
        self.looks = 0
        self.slow_s = 0.0
        self.wanted_gb: set[float] = set()
        self._changes: list[Change] = []
        self._version = 0
        self._changed = asyncio.Event()

    def set(self, number: int, vram: float, cores: int, *, told: bool = True) -> None:
        """Takes effect before it is told, as in the real index both happen at once."""
        self.free[agent_id(number)] = (vram, cores)
        if told:
            self.tell(
                Change(
                    version=self.next_version(),
                    kind=ChangeKind.CAPACITY,
                    agent_id=agent_id(number),
                    agent_type="desktop",
                    pool_name="default",
                    placeable=True,
                    gpu_vram_available_gb=vram,
                    cpu_cores_available=cores,
                    status=AgentStatus.ONLINE,
                )
            )

    def tell(self, change: Change) -> None:
        self._changes.append(change)
        self._changed.set()
        self._changed = asyncio.Event()

    def next_version(self) -> StreamId:
        self._version += 1
        return StreamId(self._version)

    async def find(self, query: CapacityQuery) -> CapacityPage:
        self.looks += 1
        if self.away:
            raise IndexUnavailableError
        # What is read is what was there at the start: the answer travels.
        found = [
            AvailableCapacity(
                agent_id=number,
                agent_type="desktop",
                pool_name="default",
                status=AgentStatus.ONLINE,
                gpu_vram_available_gb=vram,
                cpu_cores_available=cores,
                cpu_load_1min=0.0,
                last_heartbeat_at=datetime.now(UTC),
            )
            for number, (vram, cores) in self.free.items()
            if vram >= query.min_gpu_vram_gb and cores >= query.min_cpu_cores and query.gpu_type is None
        ]
        await asyncio.sleep(self.slow_s)
        return CapacityPage(agents=found, total=len(found))

    async def want_memory(self, amounts_gb: Sequence[float]) -> None:
        if self.feed_away:
            raise IndexUnavailableError
        self.wanted_gb.update(amounts_gb)

    async def newest(self) -> StreamId:
        await asyncio.sleep(0)
        if self.feed_away:
            raise IndexUnavailableError
        return StreamId(self._version)

    async def read(self, after: StreamId, *, block_s: float) -> list[Change]:
        if self.feed_away:
            await asyncio.sleep(0.01)
            raise IndexUnavailableError
        if not self._since(after):
            try:
                await asyncio.wait_for(self._changed.wait(), block_s)
            except TimeoutError:
                return []
        return self._since(after)

    def _since(self, after: StreamId) -> list[Change]:
        return [change for change in self._changes if change.version > after]


class Waiting(WaitingService):
    """With what it stands on."""

    hub: FeedHub
    played: PlayedIndex


@asynccontextmanager
async def waiting_over(played: Any, *, loops: bool = True, **options: Any) -> AsyncIterator[Waiting]:
    record = AsyncMock()
    record.newest_heartbeat.side_effect = RecordUnavailableError()
    hub = FeedHub(played, block_s=0.2)
    orchestrator = OrchestratorService(played, record, clock=SystemClock())
    service = Waiting(orchestrator, hub, **{"look_every_s": LONG_S, **options})
    service.hub, service.played = hub, played
    async with running([hub, service] if loops else [], drain_s=2.0):
        yield service


@pytest.fixture
async def waiting() -> AsyncIterator[Waiting]:
    async with waiting_over(PlayedIndex()) as service:
        yield service


async def test_what_fits_is_answered_at_once(waiting: Waiting) -> None:
    waiting.played.set(1, 8.0, 4)
    page = await waiting.find(Q(min_gpu_vram_gb=8.0), wait_s=LONG_S)
    assert [found.agent_id for found in page.agents] == [agent_id(1)]


async def test_nothing_is_answered_at_the_deadline(waiting: Waiting) -> None:
    started = asyncio.get_running_loop().time()
    page = await waiting.find(Q(min_gpu_vram_gb=8.0), wait_s=0.1)
    assert (page.agents, page.total) == ([], 0)
    assert asyncio.get_running_loop().time() - started > 0.09
    assert (await waiting.find(Q(), wait_s=0)).agents == []


async def test_a_waiter_is_woken_by_the_change_that_helps_and_by_no_other(waiting: Waiting) -> None:
    answer = asyncio.create_task(waiting.find(Q(min_gpu_vram_gb=8.0, min_cpu_cores=4), wait_s=LONG_S))
    await wait_until_async(lambda: waiting.played.looks == 2 and waiting.hub.live)
    waiting.played.set(1, 64.0, 3)
    waiting.played.set(2, 7.0, 64)
    waiting.played.tell(Change(version=waiting.played.next_version(), kind=ChangeKind.STATUS))
    await asyncio.sleep(0.05)
    assert (waiting.played.looks, answer.done()) == (2, False)
    waiting.played.set(3, 8.0, 4)
    assert [found.agent_id for found in (await answer).agents] == [agent_id(3)]
    assert waiting.played.looks == 3


async def test_thousands_who_want_the_same_cost_one_look(waiting: Waiting) -> None:
    answers = [asyncio.create_task(waiting.find(Q(min_gpu_vram_gb=8.0), wait_s=LONG_S)) for _ in range(3000)]
    await wait_until_async(lambda: waiting._waiting == 3000 and waiting.hub.live)
    looks = waiting.played.looks
    late = [asyncio.create_task(waiting.find(Q(min_gpu_vram_gb=8.0), wait_s=LONG_S)) for _ in range(1000)]
    await wait_until_async(lambda: waiting._waiting == 4000)
    assert waiting.played.looks == looks
    waiting.played.set(1, 8.0, 4)
    assert all(page.agents for page in await asyncio.gather(*answers, *late))
    assert waiting.played.looks == looks + 1
    assert waiting._waiting == 0


@pytest.mark.parametrize("kind", [ChangeKind.RESET, ChangeKind.REBUILD])
async def test_everybody_looks_again_after_a_reset_or_rebuild(waiting: Waiting, kind: ChangeKind) -> None:
    answers = [asyncio.create_task(waiting.find(Q(min_gpu_vram_gb=float(n)), wait_s=LONG_S)) for n in range(1, 30)]
    await wait_until_async(lambda: waiting.played.looks == 58 and waiting.hub.live)
    waiting.played.set(1, 64.0, 4, told=False)
    waiting.played.tell(Change(version=waiting.played.next_version(), kind=kind))
    assert all(page.agents for page in await asyncio.gather(*answers))


@pytest.mark.parametrize("point", ["looked", "registered"])
async def test_a_change_between_look_and_registration_is_not_missed(point: str) -> None:
    played = PlayedIndex()

    async def interleave(at: str) -> None:
        if at == point:
            played.set(1, 8.0, 4)

    async with waiting_over(played, pause=interleave) as waiting, asyncio.timeout(PATIENCE_S):
        assert (await waiting.find(Q(min_gpu_vram_gb=8.0), wait_s=LONG_S)).agents


async def test_no_wakeup_is_lost_whatever_comes_between() -> None:
    """1,000 rounds; every answer comes by the feed or the second look, since nothing looks now and then."""
    chance = random.Random(6)
    played = PlayedIndex()

    async def interleave(_point: str) -> None:
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)

    async with waiting_over(played, pause=interleave) as waiting:
        for round_ in range(1000):
            played.free.clear()
            played.slow_s = chance.choice((0, 0, 0.001))
            wanted = [Q(min_gpu_vram_gb=8.0, limit=1 + n % 3) for n in range(chance.randrange(1, 5))]
            answers = [asyncio.create_task(waiting.find(query, wait_s=LONG_S)) for query in wanted]
            for _ in range(chance.randrange(12)):
                await asyncio.sleep(0)
            if round_ % 7 == 0:
                answers.pop().cancel()
            if round_ % 5 == 0:
                played.set(2, 4.0, 64)
            played.set(1, 8.0, 4)
            async with asyncio.timeout(PATIENCE_S):
                assert all(page.agents for page in await asyncio.gather(*answers)), round_
        assert (waiting._waiting, waiting._groups, waiting._thresholds) == (0, {}, {})


async def test_who_joins_relies_on_a_look_that_outlives_the_first_waiter() -> None:
    """The first waiter leaves between registering and looking again; the second counts on that look."""
    played = PlayedIndex()
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def hold(point: str) -> None:
        if point == "registered":
            reached.set()
            await go_on.wait()

    async with waiting_over(played, pause=hold) as waiting:
        first = asyncio.create_task(waiting.find(Q(min_gpu_vram_gb=8.0), wait_s=LONG_S))
        await reached.wait()
        second = asyncio.create_task(waiting.find(Q(min_gpu_vram_gb=8.0), wait_s=LONG_S))
        await wait_until_async(lambda: waiting._waiting == 2)
        first.cancel()
        played.set(1, 8.0, 4, told=False)
        go_on.set()
        async with asyncio.timeout(PATIENCE_S):
            assert (await second).agents


async def test_without_the_feed_everybody_is_looked_after_now_and_then() -> None:
    played = PlayedIndex()
    played.feed_away = True
    async with waiting_over(played, look_every_s=0.05) as waiting, asyncio.timeout(PATIENCE_S):
        answer = asyncio.create_task(waiting.find(Q(min_gpu_vram_gb=8.0), wait_s=LONG_S))
        await wait_until_async(lambda: played.looks >= 3)
        played.set(1, 8.0, 4, told=False)
        assert (await answer).agents
        again = asyncio.create_task(waiting.find(Q(min_gpu_vram_gb=9.0), wait_s=LONG_S))
        await wait_until_async(lambda: waiting._waiting == 1)
        played.feed_away = False
        await wait_until_async(lambda: waiting.hub.live)
        played.set(2, 9.0, 4)
        assert (await again).agents


async def test_nobody_is_told_that_nothing_fits_when_nobody_knows() -> None:
    played = PlayedIndex()
    async with waiting_over(played, look_every_s=0.05) as waiting:
        answer = asyncio.create_task(waiting.find(Q(min_gpu_vram_gb=8.0), wait_s=0.3))
        await wait_until_async(lambda: played.looks >= 2)
        played.away = True
        with pytest.raises(UnavailableError):
            await answer
        with pytest.raises(UnavailableError):
            await waiting.find(Q(min_gpu_vram_gb=8.0), wait_s=0.3)


async def test_an_unforeseen_error_reaches_the_waiters() -> None:
    played = PlayedIndex()
    async with waiting_over(played) as waiting:
        answer = asyncio.create_task(waiting.find(Q(min_gpu_vram_gb=8.0), wait_s=LONG_S))
        await wait_until_async(lambda: played.looks == 2 and waiting.hub.live)
        played.find = AsyncMock(side_effect=ZeroDivisionError)  # type: ignore[method-assign]  # a fault of ours
        played.set(1, 8.0, 4)
        with pytest.raises(ZeroDivisionError):
            await answer


async def test_for_which_memory_somebody_waits_is_said_before_the_second_look_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.service.waiting._WANT_EVERY_S", 0.01)
    played = PlayedIndex()
    async with waiting_over(played, look_every_s=0.05) as waiting, asyncio.timeout(PATIENCE_S):
        answers = [
            asyncio.create_task(waiting.find(Q(min_gpu_vram_gb=8.0, min_memory_gb=gb), wait_s=LONG_S))
            for gb in (0.0, 16.0, 32.0)
        ]
        await wait_until_async(lambda: played.wanted_gb == {16.0, 32.0})
        played.wanted_gb.clear()
        await wait_until_async(lambda: played.wanted_gb == {16.0, 32.0})
        played.feed_away = True
        await asyncio.sleep(0.05)
        played.set(1, 8.0, 4)
        assert all(page.agents for page in await asyncio.gather(*answers))


async def test_an_unforeseen_error_while_registering_leaves_nobody_stuck() -> None:
    played = PlayedIndex()
    async with waiting_over(played) as waiting:
        newest, played.newest = played.newest, AsyncMock(side_effect=ZeroDivisionError)  # type: ignore[method-assign]  # a fault of ours
        with pytest.raises(ZeroDivisionError):
            await waiting.find(Q(min_gpu_vram_gb=8.0), wait_s=LONG_S)
        assert waiting._groups == {}
        played.newest = newest  # type: ignore[method-assign]  # mended
        answer = asyncio.create_task(waiting.find(Q(min_gpu_vram_gb=8.0), wait_s=LONG_S))
        await wait_until_async(lambda: waiting.hub.live)
        played.set(1, 8.0, 4)
        async with asyncio.timeout(PATIENCE_S):
            assert (await answer).agents


async def test_a_feed_that_makes_no_sense_is_not_called_live() -> None:
    played = PlayedIndex()
    async with waiting_over(played, look_every_s=0.05) as waiting, asyncio.timeout(PATIENCE_S):
        answer = asyncio.create_task(waiting.find(Q(min_gpu_vram_gb=8.0), wait_s=LONG_S))
        await wait_until_async(lambda: waiting.hub.live)
        read, played.read = played.read, AsyncMock(side_effect=ZeroDivisionError)  # type: ignore[method-assign]  # a fault of ours
        await wait_until_async(lambda: not waiting.hub.live)
        played.set(1, 8.0, 4, told=False)
        assert (await answer).agents
        played.read = read  # type: ignore[method-assign]  # mended


async def test_a_filter_that_the_feed_does_not_know_does_not_make_every_change_a_look(waiting: Waiting) -> None:
    answer = asyncio.create_task(waiting.find(Q(gpu_type=GpuType.AMD), wait_s=LONG_S))
    await wait_until_async(lambda: waiting.played.looks == 2 and waiting.hub.live)
    for n in range(400):
        waiting.played.set(n, 8.0, 4)
        await asyncio.sleep(0.001)
    assert waiting.played.looks < 20
    answer.cancel()


async def test_who_leaves_leaves_nothing_behind(waiting: Waiting) -> None:
    answers = [asyncio.create_task(waiting.find(Q(min_gpu_vram_gb=float(n)), wait_s=LONG_S)) for n in range(1, 20)]
    await wait_until_async(lambda: waiting.played.looks == 38)
    for answer in answers:
        answer.cancel()
    await asyncio.gather(*answers, return_exceptions=True)
    assert (waiting._waiting, waiting._groups, waiting._thresholds, waiting._due) == (0, {}, {}, [])
    assert not waiting.hub._sinks


async def test_more_than_may_wait_are_told_so() -> None:
    async with waiting_over(PlayedIndex(), most=2) as waiting:
        answers = [asyncio.create_task(waiting.find(Q(min_gpu_vram_gb=float(n)), wait_s=LONG_S)) for n in (1, 2)]
        await wait_until_async(lambda: waiting._waiting == 2)
        with pytest.raises(TooManyWaitingError):
            await waiting.find(Q(min_gpu_vram_gb=3.0), wait_s=LONG_S)
        waiting.drain()
        for answer in answers:
            with pytest.raises(TooManyWaitingError):
                await answer


async def test_a_search_may_wait_for_more_than_there_can_be(waiting: Waiting) -> None:
    assert (await waiting.find(Q(min_gpu_vram_gb=sys.float_info.max), wait_s=0.01)).agents == []


async def test_a_query_that_no_search_can_have_is_refused(waiting: Waiting) -> None:
    with pytest.raises(InvalidQueryError):
        await waiting.find(Q(min_gpu_vram_gb=-1.0), wait_s=LONG_S)


async def test_nothing_happens_at_the_points_for_tests_in_production() -> None:
    await no_pause("looked")
