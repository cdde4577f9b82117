"""A real server process of a test: started, stopped, killed, paused, and gone with the test run."""

from __future__ import annotations

import atexit
import contextlib
import resource
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests.postgres_install import Account
from tests.waiting import PATIENCE_S


class ServerFailedError(AssertionError):
    """A server did not start or end in time; the message carries the end of its log."""


class Server(ABC):
    """One server process with files of its own. `start` is done by the `start_…` functions."""

    port: int
    """Its TCP port on 127.0.0.1; stays the same through restarts."""

    _account = Account()
    """As whom it runs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._log = directory / "server.log"
        atexit.register(self.close)

    @property
    @abstractmethod
    def url(self) -> str: ...

    def limit_files(self, size: int | None) -> None:
        """No file of the server may grow above so many bytes, as on a disk that is full; None: as before."""
        pids = [process.pid for process in self._processes()]

        def limit() -> None:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                    resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard if size is None else size, hard))

        # Only its own user may limit a process, not even root in a container.
        subprocess.run(
            ["/bin/true"],
            check=True,
            user=self._account.user,
            group=self._account.group,
            extra_groups=self._account.extra_groups,
            preexec_fn=limit,
        )

    @property
    def pid(self) -> int:
        """The main process; raises AssertionError while the server is down."""
        if self._process is None or self._process.poll() is not None:
            raise AssertionError("the server is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, *, timeout_s: float = PATIENCE_S) -> None:
        """Starts the server on the files it has and returns once it answers."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._process = self._launch()
            while self.running and time.monotonic() < deadline:
                if self._ready():
                    return
                time.sleep(0.01)
            # It may end at once because what a killed predecessor held is not given back yet.
            if self.running or time.monotonic() > deadline or not self._worth_another_try():
                self._end(signal.SIGKILL, timeout_s=PATIENCE_S)
                raise ServerFailedError(f"{type(self).__name__} did not start:\n{self.log_tail()}")
            time.sleep(0.05)

    def launch(self) -> None:
        """As `start`, without waiting for an answer."""
        self._process = self._launch()

    def stop(self, *, timeout_s: float = PATIENCE_S) -> None:
        """An orderly end; what was written stays. Does nothing when the server is down."""
        self.resume()
        if not self._end(self._stop_signal(), timeout_s=timeout_s):
            self._end(signal.SIGKILL, timeout_s=PATIENCE_S)
            raise ServerFailedError(f"{type(self).__name__} did not stop:\n{self.log_tail()}")

    def kill(self) -> None:
        """`kill -9` of the main process; returns once it and its children are gone."""
        self._end(signal.SIGKILL, timeout_s=PATIENCE_S)

    def restart(self) -> None:
        """Stops the server if it runs, and starts it on the same files and the same port."""
        if self.running:
            self.stop()
        self.start()

    def pause(self) -> None:
        """SIGSTOP to all its processes: connections hang and time out."""
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def resume(self) -> None:
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def close(self) -> None:
        """Ends the server and deletes its files."""
        atexit.unregister(self.close)
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def log_tail(self) -> str:
        return self._log.read_text(errors="replace")[-3000:] if self._log.exists() else "(no log)"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def _launch(self) -> subprocess.Popen[bytes]: ...

    @abstractmethod
    def _ready(self) -> bool: ...

    @abstractmethod
    def _stop_signal(self) -> signal.Signals: ...

    def _worth_another_try(self) -> bool:
        return "in use" in self.log_tail()

    def _processes(self) -> list[psutil.Process]:
        # Looked at once: one that was just killed may end between two looks.
        process = self._process
        if process is None or process.poll() is not None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            main = psutil.Process(process.pid)
            return [main, *main.children(recursive=True)]
        return []

    def _end(self, number: signal.Signals, *, timeout_s: float) -> bool:
        """Sends the signal and returns whether all processes were gone in time."""
        if self._process is None:
            return True
        processes = self._processes()
        self._process.send_signal(number)
        if number is signal.SIGKILL:
            # Stopped children would never notice that their parent has died.
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        _, alive = psutil.wait_procs(processes, timeout=timeout_s)
        for process in alive:
            process.kill()
        self._process = None
        return True
