"""The one runner for all worker loops: signals, backoff, drain. A loop is a name and one round."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, Protocol

from app.errors import StartupRefusedError, UnavailableError
from app.telemetry import LOOP_FAILURES, logger

_FIRST_BACKOFF_S: Final = 0.1
_LONGEST_BACKOFF_S: Final = 5.0

_log = logger(__name__)


class Loop(Protocol):
    """What a worker does over and over.

    A round is safe to repeat after it failed at any point, and may be cancelled while it drains. `pause_s` lies
    between two rounds; it is 0 for one that waits for its work by itself.
    """

    @property
    def name(self) -> str: ...

    @property
    def pause_s(self) -> float: ...

    async def run_once(self) -> None: ...


class LoopEndedError(Exception):
    """A loop stopped running though nobody asked for it."""


class Runner:
    """Runs loops side by side until it is told to stop.

    A round that fails is logged and counted, and the loop goes on after a pause that doubles up to 5 s: nothing
    that a dependency does ends a worker, save that it turns out to be one that no worker may work with. A stop
    lets the rounds that are under way finish within `drain_s`.
    """

    def __init__(self, loops: Sequence[Loop], *, drain_s: float) -> None:
        self._loops = loops
        self._drain_s = drain_s
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        self._stopping.set()

    async def run(self, *, signals: bool = False, ready: Callable[[], None] = lambda: None) -> None:
        """Returns once every loop has ended.

        Raises:
            StartupRefusedError: a loop says that this process must not work with what it found.

        Args:
            signals: whether SIGTERM and SIGINT stop it.
            ready: called once the loops run.
        """
        if signals:
            running = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                running.add_signal_handler(number, self.stop)
        tasks = [asyncio.create_task(self._repeat(loop), name=loop.name) for loop in self._loops]
        ready()
        stopped = asyncio.create_task(self._stopping.wait())
        # A loop ends by itself only through something that no loop should meet: then all end, and say so.
        await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
        ended = [] if self._stopping.is_set() else [task.get_name() for task in tasks if task.done()]
        self.stop()
        await stopped
        _, late = await asyncio.wait(tasks, timeout=self._drain_s)
        for task in late:
            _log.warning("Ending a round that did not finish in time", loop=task.get_name())
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
                raise outcome
        if ended:
            raise LoopEndedError(f"The loop {', '.join(ended)} has ended by itself")

    async def _repeat(self, loop: Loop) -> None:
        backoff_s = _FIRST_BACKOFF_S
        while not self._stopping.is_set():
            try:
                await loop.run_once()
            except StartupRefusedError:
                raise
            except UnavailableError as error:
                LOOP_FAILURES.labels(loop=loop.name).inc()
                _log.warning("A dependency is away", loop=loop.name, code=error.code, detail=error.detail)
            except Exception:  # noqa: BLE001  # the loop must outlive what nobody foresaw; logged whole and counted
                LOOP_FAILURES.labels(loop=loop.name).inc()
                _log.exception("A round failed", loop=loop.name, retry_in_s=round(backoff_s, 1))
            else:
                backoff_s = _FIRST_BACKOFF_S
                if loop.pause_s > 0:
                    await self.pause(loop.pause_s)
                continue
            # Workers that lost the same server must not come back to it in step.
            await self.pause(backoff_s * random.uniform(0.75, 1.25))  # noqa: S311  # jitter, not a secret
            backoff_s = min(2 * backoff_s, _LONGEST_BACKOFF_S)

    async def pause(self, seconds: float) -> None:
        """Sleeps, but not past a stop."""
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return


@asynccontextmanager
async def running(loops: Sequence[Loop], *, drain_s: float) -> AsyncIterator[asyncio.Task[None]]:
    """Runs loops beside what the caller does, who is to end when the task does, and to raise what it raised."""
    runner = Runner(loops, drain_s=drain_s)
    task = asyncio.create_task(runner.run())
    try:
        yield task
    finally:
        runner.stop()
        await asyncio.wait([task])
