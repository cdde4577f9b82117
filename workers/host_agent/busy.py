"""Whether this machine's owner wants it left alone: a flag file, or a command that knows."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

_DEADLINE_S: Final = 3.0
_NOT_BUSY: Final = 1
_log = logging.getLogger("headroom.agent")


class BusyCheck:
    """Status 0 of the command means busy and 1 not busy, as with grep, pgrep and test.

    Anything else (a typo, a hang) is no answer: the last one stands, and the log says why, once.
    """

    def __init__(self, flag: Path, command: str, deadline_s: float = _DEADLINE_S) -> None:
        self._flag = flag
        self._command = command
        self._deadline_s = deadline_s
        self._last = False
        self._told = ""
        self._told_flag = False

    def busy(self) -> bool:
        if self._flagged():
            return True
        if not self._command:
            return False
        status, trouble = self._run()
        if status in (0, _NOT_BUSY):
            self._last = status == 0
        elif trouble != self._told:
            standing = "busy" if self._last else "not busy"
            _log.warning("The --busy-when command %s; still taken as %s", trouble, standing)
        self._told = trouble
        return self._last

    def _flagged(self) -> bool:
        try:
            flagged = self._flag.exists()
        except OSError as error:
            # A folder that the agent may not enter, as home directories are to the service.
            if not self._told_flag:
                _log.warning("The busy file %s cannot be looked for: %s", self._flag, error.strerror)
            self._told_flag = True
            return False
        self._told_flag = False
        return flagged

    def _run(self) -> tuple[int | None, str]:
        """The command's status, None if it has none, and what went wrong in words."""
        try:
            process = subprocess.Popen(  # noqa: S602  # the operator's own command line, from the operator's settings
                self._command,
                shell=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            return None, f"cannot be started ({error.strerror})"
        try:
            status = process.wait(self._deadline_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if sys.platform == "win32":
                    process.kill()
                else:
                    # The shell may have started others.
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return None, f"did not end within {self._deadline_s:g} s"
        return status, "" if status in (0, _NOT_BUSY) else f"ended with status {status}"
