"""Isolated sampling: a child process per vendor, asked with a deadline, killed when it misses it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final, Protocol

import msgspec

from workers.host_agent.probes.devices import Device, Sample

_REAP_S: Final = 0.5
_SLICE_S: Final = 0.25
_LONGEST_RESTART_S: Final = 300.0
_LONGEST_ANSWER_BYTES: Final = 1 << 20
_PACKAGE_ROOT: Final = str(Path(__file__).resolve().parents[3])


class Answer(msgspec.Struct, frozen=True):
    id: int
    devices: list[Device]
    reasons: list[str]


_answers = msgspec.json.Decoder(Answer)


class ChildProcess(Protocol):
    """The part of `subprocess.Popen` that the sampler uses."""

    pid: int
    stdin: IO[bytes] | None
    stdout: IO[bytes] | None

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def kill(self) -> None: ...


Spawn = Callable[[], ChildProcess]


def spawn_child(vendor: str, host_root: Path) -> ChildProcess:
    """Starts a fresh interpreter: it inherits neither descriptors nor the agent's memory."""
    path = os.pathsep.join([_PACKAGE_ROOT, *(entry for entry in sys.path if entry)])
    return subprocess.Popen(  # noqa: S603  # this interpreter, on this package's own module
        # -S and -s: the import path is given whole, so that no site hook adds to the child's memory.
        [sys.executable, "-S", "-s", "-m", "workers.host_agent.probes.child", vendor, str(host_root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
        # A group of its own: a kill takes a running nvidia-smi with it, and no Ctrl-C reaches it.
        start_new_session=True,
    )


class IsolatedProbe:
    """One vendor's child and the rules about it.

    A child that has never answered is starting: it has `start_s` for that, and nobody waits for it but the first
    round. One that has answered before must do so within `deadline_s`. After a failure the next child starts at
    once, after further ones later and later, so that a broken driver costs next to nothing. A child that not even
    SIGKILL ends (it hangs inside the kernel) is kept in sight, and no other is started beside it. Time is that of
    a clock that stands still while the machine sleeps, else a child would seem to hang after every night.
    """

    def __init__(
        self,
        vendor: str,
        *,
        spawn: Spawn,
        deadline_s: float,
        start_s: float,
        restart_s: float,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._vendor = vendor
        self._spawn = spawn
        self._now_s = now_s
        self._deadline_s = deadline_s
        self._start_s = start_s
        self._restart_s = restart_s
        self._child: ChildProcess | None = None
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._stuck: list[ChildProcess] = []
        self._answered = False
        self._had_devices = False
        self._failures = 0
        self._retry_at_s = 0.0
        self._started_s = 0.0
        self._asked_s = 0.0
        self._request_id = 0
        self._reason = ""

    def begin(self, *, with_processes: bool) -> None:
        """Asks the child for a sample; starts one if that is due."""
        now_s = self._now_s()
        self._stuck = [child for child in self._stuck if child.poll() is None]
        if self._child is not None and not self._answered:
            self._take_late_answers()
        if self._child is not None and not self._answered and now_s - self._started_s > self._start_s:
            self._fail(f"no answer within {self._start_s:g} s of its start")
        if self._child is None and not self._stuck and now_s >= self._retry_at_s:
            self._start(now_s)
            self._ask(with_processes=with_processes)
        elif self._child is not None and self._answered:
            self._ask(with_processes=with_processes)

    def collect(self, *, until_s: float | None, stopping: Callable[[], bool]) -> Sample:
        """The answer to the last `begin()`.

        Args:
            until_s: by `now_s`, when to give up on a child that is still starting; it is not killed for it.
                None: do not wait for it. A child that has answered before is waited for until its own deadline.
            stopping: ends the wait.
        """
        if self._child is None:
            return self._missing()
        limit_s = self._asked_s + self._deadline_s if self._answered else until_s
        while self._child is not None:
            left_s = 0.0 if limit_s is None or stopping() else limit_s - self._now_s()
            try:
                # Looked at even when the time is over: the answer may be there, and another vendor's was late.
                line = self._lines.get(timeout=min(left_s, _SLICE_S)) if left_s > 0 else self._lines.get_nowait()
            except queue.Empty:
                if left_s <= 0:
                    break
                continue
            sample = self._judge(line)
            if sample is not None:
                return sample
        if self._child is not None and self._answered and not stopping():
            self._fail(f"no answer within {self._deadline_s:g} s")
        elif self._child is not None and not self._answered:
            self._reason = f"{self._vendor}: the driver has not answered yet"
        return self._missing()

    def close(self) -> None:
        """Ends the child; nothing is left behind but what hangs inside the kernel."""
        if self._child is not None:
            self._end(self._child)
            self._child = None
        self._stuck = [child for child in self._stuck if child.poll() is None]

    def _start(self, now_s: float) -> None:
        try:
            child = self._spawn()
        except OSError as error:
            self._fail(f"the sampling child cannot be started: {error.strerror}")
            return
        self._lines = queue.SimpleQueue()
        self._child = child
        self._answered = False
        self._started_s = now_s
        threading.Thread(
            target=_read_lines, args=(child, self._lines), name=f"gpu-{self._vendor}", daemon=True
        ).start()

    def _ask(self, *, with_processes: bool) -> None:
        if self._child is None or self._child.stdin is None:
            return
        self._request_id += 1
        self._asked_s = self._now_s()
        request = json.dumps({"id": self._request_id, "processes": with_processes})
        # A child that has just died cannot be written to; the reader's end of file says so in collect().
        with contextlib.suppress(BrokenPipeError):
            # Past the buffer, which would keep what a dead child did not take and fail again when closed.
            os.write(self._child.stdin.fileno(), request.encode() + b"\n")

    def _take_late_answers(self) -> None:
        """A child that was too slow to start may have answered since; that answer is old, but it is alive."""
        while self._child is not None:
            try:
                line = self._lines.get_nowait()
            except queue.Empty:
                return
            self._judge(line)

    def _judge(self, line: bytes | None) -> Sample | None:
        """Takes one line of the child: a sample if it answers the last request, else None."""
        if line is None:
            self._fail(self._how_it_ended())
            return None
        try:
            answer = _answers.decode(line)
        except msgspec.DecodeError:
            self._fail("the sampling child wrote what cannot be read")
            return None
        reasons = [f"{self._vendor}: {reason}" for reason in answer.reasons]
        if not answer.devices and reasons:
            # The child ends by itself after this; ending it here makes sure, and reaps it.
            self._fail(answer.reasons[0])
            return None
        self._answered = True
        self._failures = 0
        if answer.id != self._request_id:
            return None
        if not answer.devices and self._had_devices:
            reasons = [f"{self._vendor}: the GPU is gone"]
        self._had_devices = self._had_devices or bool(answer.devices)
        return Sample(answer.devices, reasons)

    def _how_it_ended(self) -> str:
        status = None
        if self._child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self._child.wait(_REAP_S)
        if status is not None and status < 0:
            try:
                return f"the sampling child crashed with {signal.Signals(-status).name}"
            except ValueError:
                return f"the sampling child was ended by signal {-status}"
        return f"the sampling child ended with status {status}"

    def _fail(self, reason: str) -> None:
        self._reason = f"{self._vendor}: {reason}"
        if self._child is not None:
            self._end(self._child)
            self._child = None
        self._answered = False
        wait_s = 0.0 if self._failures == 0 else self._restart_s * 2.0 ** min(self._failures - 1, 10)
        self._failures += 1
        self._retry_at_s = self._now_s() + min(wait_s, _LONGEST_RESTART_S)

    def _end(self, child: ChildProcess) -> None:
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if sys.platform == "win32":
                    child.kill()
                else:
                    os.killpg(child.pid, signal.SIGKILL)
            try:
                child.wait(_REAP_S)
            except subprocess.TimeoutExpired:
                self._stuck.append(child)
        # stdout belongs to the reader thread, which closes it when its last writer is gone.
        if child.stdin is not None:
            child.stdin.close()

    def _missing(self) -> Sample:
        return Sample([], [self._reason] if self._reason else [])


def _read_lines(child: ChildProcess, lines: queue.SimpleQueue[bytes | None]) -> None:
    if child.stdout is not None:
        with child.stdout as stream:
            while line := stream.readline(_LONGEST_ANSWER_BYTES):
                lines.put(line)
    lines.put(None)
    # Reaped the moment it dies, so that no zombie stands until the next heartbeat asks.
    child.wait()
