"""The one runner for all loops: nothing that a round does ends it, a stop is quick, and no loop ends unseen."""

from __future__ import annotations

import asyncio

import pytest

from app.errors import RecordUnavailableError, StartupRefusedError
from tests.waiting import PATIENCE_S
from workers.runner import LoopEndedError, Runner


class Scripted:
    """Does what it is told, round by round, then stops the runner."""

    name = "scripted"

    def __init__(self, *rounds: BaseException | None, pause_s: float = 0.0) -> None:
        self.pause_s = pause_s
        self.done = 0
        self.runner: Runner | None = None
        self._rounds = list(rounds)

    async def run_once(self) -> None:
        if not self._rounds:
            assert self.runner is not None
            self.runner.stop()
            return
        outcome = self._rounds.pop(0)
        self.done += 1
        if outcome is not None:
            raise outcome


def runner_of(*loops: Scripted, drain_s: float = 1.0) -> Runner:
    runner = Runner(loops, drain_s=drain_s)
    for loop in loops:
        loop.runner = runner
    return runner


async def test_a_round_that_fails_is_followed_by_another() -> None:
    loop = Scripted(RecordUnavailableError(), ValueError("nobody foresaw this"), None)
    await asyncio.wait_for(runner_of(loop).run(), PATIENCE_S)
    assert loop.done == 3


async def test_a_store_that_nobody_may_work_with_ends_all_loops() -> None:
    refusing, other = Scripted(None, StartupRefusedError("no such schema")), Scripted(None, pause_s=3600.0)
    with pytest.raises(StartupRefusedError, match="no such schema"):
        await asyncio.wait_for(runner_of(refusing, other).run(), PATIENCE_S)


async def test_a_stop_need_not_wait_for_a_pause() -> None:
    loop = Scripted(None, pause_s=3600.0)
    runner = runner_of(loop, drain_s=3600.0)
    asyncio.get_running_loop().call_later(0.1, runner.stop)
    await asyncio.wait_for(runner.run(), PATIENCE_S)


async def test_a_round_that_does_not_end_is_cut_off_after_the_drain() -> None:
    class Stuck(Scripted):
        async def run_once(self) -> None:
            await asyncio.Event().wait()

    runner = runner_of(Stuck(), drain_s=0.1)
    asyncio.get_running_loop().call_later(0.1, runner.stop)
    await asyncio.wait_for(runner.run(), PATIENCE_S)


async def test_a_loop_that_is_cancelled_from_elsewhere_does_not_end_unseen() -> None:
    other = Scripted(pause_s=3600.0)
    other._rounds = [None]
    with pytest.raises(LoopEndedError, match="scripted"):
        await asyncio.wait_for(runner_of(Scripted(asyncio.CancelledError()), other).run(), PATIENCE_S)
