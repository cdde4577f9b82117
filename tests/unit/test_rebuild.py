"""A rebuild and its lease."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Sequence
from unittest.mock import AsyncMock, Mock

import pytest

from app.errors import IndexUnavailableError
from app.models.agent import RecordedState
from tests.waiting import PATIENCE_S
from workers import rebuild
from workers.rebuild import Rebuild


class Leased:
    """An upkeep whose restore of the first page lasts until the lease was asked for `lasts` times."""

    def __init__(self, answers: Sequence[bool | Exception], *, lasts: int) -> None:
        self._answers = iter(answers)
        self._lasts = lasts
        self._asked = 0
        self._enough = asyncio.Event()
        self.upkeep = AsyncMock()
        self.upkeep.lease.side_effect = self._lease
        self.upkeep.restore.side_effect = self._restore
        self.upkeep.open_epoch.return_value = True
        self.record = Mock()
        self.record.greatest_position = AsyncMock(return_value=None)
        self.record.states.side_effect = self._states
        self.rebuild = Rebuild(self.upkeep, self.record, "me")

    async def _lease(self, _duty: str, _holder: str, *, ttl_s: float) -> bool:
        assert ttl_s > rebuild._RENEW_EVERY_S
        self._asked += 1
        if self._asked == self._lasts:
            self._enough.set()
        answer = next(self._answers, True)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _restore(self, _states: Sequence[RecordedState], *, alone: bool) -> int:
        assert alone
        await self._enough.wait()
        return 1

    async def _states(self, *, page_size: int) -> AsyncIterator[list[RecordedState]]:
        for _ in range(5 * rebuild._PAGE // page_size):
            yield [Mock(spec=RecordedState)] * page_size


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuild, "_RENEW_EVERY_S", 0.001)


@pytest.mark.parametrize("answers", [[True], [True, IndexUnavailableError(), True]])
async def test_the_lease_is_renewed_while_a_page_lasts(answers: Sequence[bool | Exception]) -> None:
    leased = Leased(answers, lasts=4)
    async with asyncio.timeout(PATIENCE_S):
        assert await leased.rebuild.rebuild()


async def test_who_lost_the_lease_leaves_the_epoch_to_the_other() -> None:
    leased = Leased([True, False], lasts=2)
    async with asyncio.timeout(PATIENCE_S):
        assert not await leased.rebuild.rebuild()
    leased.upkeep.open_epoch.assert_not_awaited()


async def test_the_record_is_read_in_pieces_and_put_back_in_pages() -> None:
    leased = Leased([], lasts=1)
    pieces: list[list[RecordedState]] = [[Mock(spec=RecordedState)] * number for number in (500,) * 23 + (7,)]

    async def states(*, page_size: int) -> AsyncIterator[list[RecordedState]]:
        assert page_size == 500
        for piece in pieces:
            yield piece

    restored: list[int] = []

    async def restore(page: Sequence[RecordedState], *, alone: bool) -> int:
        assert alone, "lookups do not read the index meanwhile"
        restored.append(len(page))
        return len(page)

    leased.record.states.side_effect = states
    leased.upkeep.restore.side_effect = restore
    assert await leased.rebuild.rebuild()
    assert restored == [5_000, 5_000, 1_507]


async def test_pages_that_fail_together_are_all_heard(caplog: pytest.LogCaptureFixture) -> None:
    # What earlier tests left says so now.
    gc.collect()
    caplog.clear()
    leased = Leased([], lasts=1)
    both, gone = asyncio.Event(), asyncio.Event()
    begun = 0

    async def restore(_: Sequence[RecordedState], *, alone: bool) -> int:
        nonlocal begun
        begun += 1
        if begun == rebuild._PAGES_UNDER_WAY:
            both.set()
        await gone.wait()
        raise IndexUnavailableError

    leased.upkeep.restore.side_effect = restore
    rebuilding = asyncio.create_task(leased.rebuild.rebuild())
    async with asyncio.timeout(PATIENCE_S):
        await both.wait()
        gone.set()
        with pytest.raises(IndexUnavailableError):
            await rebuilding
    # asyncio says so when it drops a task whose error nobody looked at; until it is resumed, it has the last one.
    del rebuilding
    await asyncio.sleep(0)
    gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio"]


async def test_pages_under_way_end_with_the_rebuild() -> None:
    leased = Leased([], lasts=1)
    begun, ended = 0, 0

    async def restore(_: Sequence[RecordedState], *, alone: bool) -> int:
        nonlocal begun, ended
        begun += 1
        try:
            if begun == rebuild._PAGES_UNDER_WAY:
                raise IndexUnavailableError
            await asyncio.Event().wait()
            raise AssertionError
        finally:
            for _turn in range(20):
                await asyncio.sleep(0)
            ended += 1

    leased.upkeep.restore.side_effect = restore
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(IndexUnavailableError):
            await leased.rebuild.rebuild()
    assert begun == ended == rebuild._PAGES_UNDER_WAY
