"""A lock file: at most one process, and what it passes the lock on to, may hold it; the kernel gives it back."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import msgspec
import psutil


class Holder(msgspec.Struct, frozen=True):
    """Who took the lock, as written into the file."""

    pid: int
    started_s: float
    """The process's start by the system's clock: tells it from a later one with the same pid."""
    note: str = ""

    @property
    def alive(self) -> bool:
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started_s) < 1.0
        except psutil.Error:
            return False


class LockHeldError(Exception):
    """Somebody holds the lock; `holder` is who took it, None where the file does not say."""

    def __init__(self, holder: Holder | None) -> None:
        self.holder = holder
        super().__init__("the lock is held")


class LockFile:
    """An flock on `path`. A child that inherits `fd` holds it too, even after the taker's death."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    @property
    def fd(self) -> int:
        if self._fd is None:
            raise ValueError("the lock is not held")
        return self._fd

    def acquire(self, *, note: str = "") -> None:
        """Takes the lock or raises LockHeldError at once."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            raise LockHeldError(self._holder()) from error
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        self.annotate(note)

    def annotate(self, note: str) -> None:
        """Says who holds the lock, and `note` to whoever comes second."""
        holder = Holder(os.getpid(), psutil.Process().create_time(), note)
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, msgspec.json.encode(holder), 0)

    def release(self) -> None:
        """Gives it back; the file stays, since deleting it would let two processes lock two files."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _holder(self) -> Holder | None:
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=Holder)
        except (OSError, msgspec.DecodeError):
            return None
