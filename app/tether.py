"""Ties a process's life to its parent's, so that not even a `kill -9` of the parent leaves anything behind.

On Linux the kernel does it (PR_SET_PDEATHSIG). Elsewhere Headroom's own processes watch a pipe whose other end
only the parent holds: it reads as closed once the parent is gone, however it went.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable

PARENT_FD_VARIABLE = "HEADROOM_PARENT_FD"

_PR_SET_PDEATHSIG = 1


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
    """Returns what `subprocess` is to run in the child before it becomes the server.

    The kernel sends `number` when the *thread* that started the child ends, so start children from a thread that
    lives as long as the process. It must be called after any change of user, which clears the setting
    (`subprocess` does it in this order).
    """
    if sys.platform != "linux":
        return lambda: None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent_pid = os.getpid()

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, int(number))
        # The parent may have died between fork and prctl; then no signal would ever come.
        if os.getppid() != parent_pid:
            os._exit(1)

    return tie


def follow_parent() -> None:
    """Called first thing by a process that `headroom up` started; does nothing in any other."""
    text = os.environ.pop(PARENT_FD_VARIABLE, None)
    if text is None:
        return
    pipe = int(text)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    # The pipe also covers a parent that died before the line above, and systems that lack it.
    threading.Thread(target=_end_when_closed, args=(pipe,), name="follow-parent", daemon=True).start()


def _end_when_closed(pipe: int) -> None:
    while os.read(pipe, 1):
        pass
    os.kill(os.getpid(), signal.SIGKILL)
