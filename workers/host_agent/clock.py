"""The agent's time: one clock that goes on through suspend, one wall clock, and waiting that a signal ends."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from types import FrameType
from typing import Final, Protocol, Self

# select() counts in a clock that stands still while the machine sleeps; a wait in slices notices the resume.
_LONGEST_SLICE_S: Final = 10.0


class StopRequestedError(Exception):
    """Raised out of a blocking network call when the process is asked to end."""


class Clock(Protocol):
    def now_s(self) -> float:
        """Seconds that only rise, sleep of the machine included; their zero means nothing."""

    def wall(self) -> datetime:
        """The machine's own idea of the date, for `sent_at` only."""


def _now_s() -> float:
    clock_id = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock_id is None else time.clock_gettime(clock_id)


class SystemClock:
    """CLOCK_BOOTTIME where there is one: unlike CLOCK_MONOTONIC it counts the time a laptop lay closed."""

    def now_s(self) -> float:
        return _now_s()

    def wall(self) -> datetime:
        return datetime.now(UTC)


class Pause(Protocol):
    """How the agent waits, and how it learns that it has to end."""

    @property
    def stopping(self) -> bool: ...

    def wait(self, seconds: float) -> None:
        """Returns after at most `seconds`, at once when stopping; may return early, so call it in a loop."""

    def interruptible(self) -> contextlib.AbstractContextManager[None]:
        """While it is entered, a request to end raises StopRequestedError out of whatever blocks."""


class NeverStops:
    """For a sender in a thread, which no signal interrupts."""

    stopping = False

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def interruptible(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class SignalPause:
    """SIGTERM and SIGINT end the agent. A context manager, to be entered in the main thread."""

    def __init__(self) -> None:
        self._stopping = False
        self._raise_allowed = False
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)
        self._previous: dict[int, object] = {}
        self._previous_fd = -1

    @property
    def stopping(self) -> bool:
        return self._stopping

    def __enter__(self) -> Self:
        self._previous_fd = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal() returned is what it takes
        signal.set_wakeup_fd(self._previous_fd)
        self._receiver.close()
        self._sender.close()

    def wait(self, seconds: float) -> None:
        if self._stopping or seconds <= 0:
            return
        ready, _, _ = select.select([self._receiver], [], [], min(seconds, _LONGEST_SLICE_S))
        if ready:
            with contextlib.suppress(BlockingIOError):
                self._receiver.recv(512)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        self._raise_allowed = True
        try:
            # A signal that came before the line above set only the flag.
            if self._stopping:
                raise StopRequestedError
            yield
        finally:
            self._raise_allowed = False

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        first = not self._stopping
        self._stopping = True
        if first and self._raise_allowed:
            raise StopRequestedError
