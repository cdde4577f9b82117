"""A part of a running Headroom: a process that is kept running."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from app.errors import StartupRefusedError
from app.telemetry import logger

_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 10.0
_STEADY_AFTER_S: Final = 30.0

_log = logger(__name__)


class Part(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def pid(self) -> int | None:
        """None while it is down."""
        ...

    async def start(self) -> None: ...

    async def wait(self) -> int:
        """Returns its exit status once it has ended; negative: the signal that ended it."""
        ...

    async def stop(self, *, within_s: float) -> None:
        """Asks it to end, and kills it when it has not done so in time."""
        ...


class Command:
    """A `headroom …` command as a part."""

    def __init__(
        self, name: str, arguments: Sequence[str], environment: Mapping[str, str], *, pass_fds: Sequence[int]
    ) -> None:
        self.name = name
        self._arguments = arguments
        self._environment = environment
        self._pass_fds = pass_fds
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # the person's own folder may well hold an `app`
            "-m",
            "app",
            *self._arguments,
            env={**self._environment, "PYTHONPATH": _import_path(self._environment.get("PYTHONPATH"))},
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=self._pass_fds,
            # Ctrl-C would reach all parts at once; they are ended in order instead.
            start_new_session=True,
        )

    async def wait(self) -> int:
        if self._process is None:
            raise ValueError("the part was not started")
        return await self._process.wait()

    async def stop(self, *, within_s: float) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), within_s)
        except TimeoutError:
            _log.warning("A part does not end, killing it", part=self.name, pid=process.pid)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _import_path(given: str | None) -> str:
    """Makes the children run the code that this process runs, installed or not."""
    here = str(Path(__file__).resolve().parent.parent)
    return os.pathsep.join([here, given] if given else [here])


async def keep(part: Part) -> None:
    """Starts the part again whenever it ends, after a pause that grows while it does not stay up.

    Raises:
        StartupRefusedError: it says that no further try can help; what to do it has written itself.
    """
    pause_s = _FIRST_PAUSE_S
    while True:
        started = time.monotonic()
        if part.pid is None:
            await part.start()
        status = await part.wait()
        if status == os.EX_CONFIG:
            raise StartupRefusedError(f"The part `{part.name}` refuses to start; its reason stands above")
        if time.monotonic() - started > _STEADY_AFTER_S:
            pause_s = _FIRST_PAUSE_S
        _log.warning("A part has ended and is started again", part=part.name, status=status, in_s=pause_s)
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
