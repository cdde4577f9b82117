"""Starts Headroom's processes quickly: one process imports everything once and forks a child for each.

A child is a process of its own that runs `headroom ARGUMENTS` exactly as a shell would start it; it dies with the
nursery, and the nursery with the tests.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil

from app.tether import die_with_parent
from tests.waiting import PATIENCE_S, wait_until

ROOT: Final = Path(__file__).resolve().parents[2]
_WARM: Final = (
    "app.__main__",
    "app.cli",
    "app.main",
    "app.serve",
    "tests.faults.failpoints",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
    "uvicorn.protocols.http.auto",
    "workers.process",
)


class Process:
    """One `headroom …`; `log` is what it has written."""

    def __init__(self, pid: int, output: Path) -> None:
        self._output = output
        self._pid = pid
        self._found: psutil.Process | None = None
        # What refuses to start may have ended by now.
        with contextlib.suppress(psutil.NoSuchProcess):
            self._found = psutil.Process(pid)

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def log(self) -> str:
        return self._output.read_text(errors="replace")

    @property
    def _process(self) -> psutil.Process:
        if self._found is None:
            raise psutil.NoSuchProcess(self._pid)
        return self._found

    @property
    def running(self) -> bool:
        return self._found is not None and self._found.is_running()

    @property
    def stopped(self) -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):
            return bool(self._process.status() == psutil.STATUS_STOPPED)
        return False

    def until_stopped(self, *, timeout_s: float = PATIENCE_S) -> None:
        """Returns once the process has stopped itself at its failpoint."""
        wait_until(lambda: self.stopped, timeout_s=timeout_s, what=f"the failpoint; log:\n{self.log[-2000:]}")

    def pause(self) -> None:
        self._process.suspend()

    def resume(self) -> None:
        self._process.resume()

    def kill(self) -> None:
        """`kill -9`; returns once it is gone."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process.kill()
            self._process.wait(PATIENCE_S)

    def terminate(self) -> None:
        """SIGTERM, without waiting for the end."""
        self._process.terminate()

    def until_ended(self, *, timeout_s: float = PATIENCE_S) -> int | None:
        """Returns the exit status; None when a signal ended it."""
        status = _status_file(self._output)
        if self._found is None:
            wait_until(status.exists, timeout_s=timeout_s, what=f"the end of process {self._pid}")
        else:
            self._found.wait(timeout_s)
        return int(status.read_text()) if status.exists() else None


class Nursery:
    """The tests' end of the nursery; a context manager."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.nursery"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=die_with_parent(),  # noqa: PLW1509  the child only calls prctl
        )

    def start(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        output: Path,
        stop_at: str | None = None,
    ) -> Process:
        """Runs `headroom ARGUMENTS`, in `output`'s directory.

        Args:
            arguments: of the command.
            environment: all of it.
            output: the file that takes what it writes.
            stop_at: a failpoint at which it stops itself once.
        """
        wish = {"arguments": arguments, "environment": environment, "output": str(output), "stop_at": stop_at}
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None
        assert answers is not None
        requests.write(json.dumps(wish).encode() + b"\n")
        requests.flush()
        return Process(int(answers.readline()), output)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(PATIENCE_S)


def _serve() -> None:
    for name in _WARM:
        importlib.import_module(name)
    # Children that end are reaped by the kernel: nobody here waits for them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        wish = json.loads(line)
        tie = die_with_parent()
        pid = os.fork()
        if pid == 0:
            tie()
            _become(wish["arguments"], wish["environment"], Path(wish["output"]), wish["stop_at"])
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


def _become(arguments: list[str], environment: dict[str, str], output: Path, stop_at: str | None) -> None:
    """Turns the forked child into the command. Never returns."""
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.chdir(output.parent)
        log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        silence = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((silence, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.closerange(3, 64)
        # Objects of these names still belong to the nursery's pipes.
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["headroom", *arguments]
        if stop_at is not None:
            from tests.faults.failpoints import arm

            arm(stop_at)
        from app.__main__ import main

        main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        _status_file(output).write_text(str(status))
        os._exit(status)


def _status_file(output: Path) -> Path:
    return output.with_suffix(".status")


if __name__ == "__main__":
    _serve()
