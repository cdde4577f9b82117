"""Who this agent is: a UUID made once, kept through power loss, and left behind by a cloned disk."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from app.errors import StartupRefusedError
from workers.host_agent.machine import Machine

_STATE: Final = "identity.json"
_UNFINISHED: Final = ".tmp"
_LOCK: Final = "lock"
_log = logging.getLogger("headroom.agent")


class _State(msgspec.Struct, frozen=True):
    agent_id: uuid.UUID
    machine: Machine


def read_agent_id(state_dir: Path, machine: Machine) -> str | None:
    """The kept UUID, or None where there is none that belongs to this machine. Writes nothing.

    Raises:
        StartupRefusedError: there is a state file that cannot be read.
    """
    return _read_state(state_dir, machine)[0]


def keep_agent_id(state_dir: Path, machine: Machine) -> str:
    """The machine's UUID, made and written at the first call.

    Raises:
        StartupRefusedError: the state cannot be read or written; with an identity that is forgotten at every
            start, the fleet would fill with machines that never come back.
    """
    known, kept = _read_state(state_dir, machine)
    agent_id = known or str(uuid.uuid4())
    # Root can read more than a user can; what was known once is not forgotten.
    merged = machine.completed(kept) if known else machine
    content = msgspec.json.format(msgspec.json.encode(_State(uuid.UUID(agent_id), merged))) + b"\n"
    path = state_dir / _STATE
    _clear_unfinished(path)
    try:
        if not path.exists() or path.read_bytes() != content:
            _write_durably(path, content)
    except OSError as error:
        raise StartupRefusedError(
            f"The identity cannot be kept in {state_dir} ({error.strerror}): "
            "make the folder writable, name another with --state-dir, or give a fixed --agent-id"
        ) from error
    return agent_id


def _read_state(state_dir: Path, machine: Machine) -> tuple[str | None, Machine]:
    try:
        state = msgspec.json.decode((state_dir / _STATE).read_bytes(), type=_State)
    except FileNotFoundError:
        return None, machine
    except OSError as error:
        # It may be whole: a disk in trouble or a missing right must not cost the machine its name.
        raise StartupRefusedError(
            f"The identity in {state_dir} cannot be read ({error.strerror}): make {_STATE} readable, "
            "or delete it for a new identity"
        ) from error
    except msgspec.DecodeError as error:
        _log.warning("The state file is broken (%s); a new identity is made", type(error).__name__)
        return None, machine
    difference = machine.differs_from(state.machine)
    if difference:
        _log.warning("This disk was copied from another machine (%s differs); a new identity is made", difference)
        return None, machine
    return str(state.agent_id), state.machine


def _write_durably(path: Path, content: bytes) -> None:
    """After a power cut the file is the old one or the new one, never an empty one."""
    temporary = path.with_name(path.name + _UNFINISHED)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    if sys.platform != "win32":
        # The new name is on disk only once the folder is.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _clear_unfinished(path: Path) -> None:
    """A power cut may leave what was being written; earlier versions gave such files a number each."""
    for leftover in path.parent.glob(f"{path.name}*{_UNFINISHED}"):
        try:
            leftover.unlink(missing_ok=True)
        except OSError as error:
            # It is in nobody's way; whether anything can be written here is told where it is needed.
            _log.debug("%s cannot be deleted: %s", leftover, error.strerror)


@contextlib.contextmanager
def only_agent(state_dir: Path) -> Iterator[None]:
    """Holds the state directory: two agents with one identity would fight over it.

    Raises:
        StartupRefusedError: another agent holds it, or it cannot be made.
    """
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        lock = (state_dir / _LOCK).open("a+b")
    except OSError as error:
        raise StartupRefusedError(
            f"The state directory {state_dir} cannot be used ({error.strerror}): name another with --state-dir"
        ) from error
    with lock:
        try:
            _lock_exclusively(lock.fileno())
        except OSError as error:
            raise StartupRefusedError(
                f"Another agent is running with the state directory {state_dir}; "
                "end it first, or give this one its own with --state-dir"
            ) from error
        yield


def _lock_exclusively(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt  # noqa: PLC0415  # each system has its own

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl  # noqa: PLC0415  # each system has its own

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
