"""Which cores the one who asks and the servers run on, and that these do not sleep."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from app.tether import die_with_parent


def cores_to_place() -> list[int] | None:
    """Those that this may use; None for fewer than two, or where the servers would pay for keeping them awake."""
    if sys.platform != "linux":
        return None
    quota = Path("/sys/fs/cgroup/cpu.max")
    limited = quota.exists() and not quota.read_text(encoding="ascii").startswith("max")
    cores = sorted(os.sched_getaffinity(0))
    return None if limited or len(cores) < 2 else cores


@contextmanager
def apart_and_awake() -> Iterator[None]:
    """The one who asks has a core to itself, everything that it has started the others, and no core ever sleeps.

    Left to the scheduler, a server is woken now on the asker's core and now on one that sleeps, which on a virtual
    machine takes longer than a lookup: by chance one side would be measured in one way for a whole cell, and the
    next one in the other. A process that runs only where nobody else wants to keeps each core awake.
    """
    cores = cores_to_place()
    if cores is None:
        yield
        return
    with ExitStack() as undo:
        undo.callback(_place_everything, cores, cores)
        _place_everything(cores[:1], cores[1:])
        for core in cores:
            undo.enter_context(_kept_awake(core))
        yield


def _place_everything(asker: list[int], servers: list[int]) -> None:
    own = psutil.Process()
    _place(own, asker)
    for process in own.children(recursive=True):
        _place(process, servers)


def _place(process: psutil.Process, cores: list[int]) -> None:
    # Processes and threads come and go, and a Postgres of another user is not ours to place.
    with suppress(psutil.Error):
        for thread in process.threads():
            with suppress(ProcessLookupError, PermissionError):
                os.sched_setaffinity(thread.id, cores)


@contextmanager
def _kept_awake(core: int) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", "while True: pass"],
        preexec_fn=die_with_parent(),  # noqa: PLW1509  the child only calls prctl
    )
    try:
        os.sched_setscheduler(process.pid, os.SCHED_IDLE, os.sched_param(0))
        os.sched_setaffinity(process.pid, [core])
        yield
    finally:
        process.kill()
        process.wait()
