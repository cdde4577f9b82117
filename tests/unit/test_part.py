"""Keeping a part running."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest

from app.errors import StartupRefusedError
from tests.waiting import PATIENCE_S
from workers import part as module
from workers import up
from workers.part import Command, keep


class Scripted:
    """A part that ends at once with the given statuses, and then stays up."""

    name = "scripted"

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.starts = 0
        self.pid: int | None = None
        self.stays = asyncio.Event()

    async def start(self) -> None:
        self.starts += 1
        self.pid = self.starts

    async def wait(self) -> int:
        if not self.statuses:
            self.stays.set()
            await asyncio.Event().wait()
        self.pid = None
        return self.statuses.pop(0)

    async def stop(self, *, within_s: float) -> None:
        raise AssertionError("nobody asked it to stop")


async def test_a_part_that_dies_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.001)
    part = Scripted(1, -9, 0)
    keeping = asyncio.create_task(keep(part))
    await asyncio.wait_for(part.stays.wait(), PATIENCE_S)
    assert part.starts == 4
    keeping.cancel()


async def test_the_pause_between_starts_grows_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def no_sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", no_sleep)
    part = Scripted(*[1] * 9)
    keeping = asyncio.create_task(keep(part))
    await asyncio.wait_for(part.stays.wait(), PATIENCE_S)
    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10]
    keeping.cancel()


async def test_a_part_that_refuses_is_not_tried_again() -> None:
    part = Scripted(os.EX_CONFIG)
    with pytest.raises(StartupRefusedError, match="scripted"):
        await keep(part)
    assert part.starts == 1


async def test_a_part_that_does_not_end_is_killed() -> None:
    part = Command("deaf", [], {}, pass_fds=())
    part._process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)",
        stdout=asyncio.subprocess.PIPE,
    )
    assert part._process.stdout is not None
    await part._process.stdout.readline()
    await part.stop(within_s=0.2)
    assert await part.wait() == -signal.SIGKILL
    assert part.pid is None
    await part.stop(within_s=0.2)


def test_all_parts_together_have_less_time_to_end_than_docker_gives() -> None:
    """10 s, then Docker kills."""
    assert up._REPORTERS_END_WITHIN_S + up._PARTS_END_WITHIN_S + up._EMBEDDED_ENDS_WITHIN_S < 10
