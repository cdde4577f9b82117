"""Brings a heartbeat to the first server that takes it, and reads from the answer when the next one is wished."""

from __future__ import annotations

import functools
import http.client
import logging
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Final, NamedTuple, Protocol

import msgspec

from app.errors import StartupRefusedError
from workers.host_agent.clock import Pause
from workers.host_agent.config import Config
from workers.host_agent.connection import Connection, HttpAnswer

_GOODBYE_S: Final = 3.0
_LONGEST_DETAIL: Final = 300
_MOST_TOLD: Final = 16
_ACCEPTED: Final = 202
_AT_FAULT: Final = frozenset({400, 413, 415, 422})
_log = logging.getLogger("headroom.agent")


class Outcome(NamedTuple):
    """What became of a heartbeat. Refused means that a server read it and would refuse it again."""

    accepted: bool = False
    refused: bool = False
    next_heartbeat_s: float | None = None
    retry_after_s: float | None = None
    detail: str = ""
    cloned: bool = False
    body: bytes = b""


class Sender(Protocol):
    """What carries heartbeats; Delivery, or a test's stand-in."""

    def deliver(self, path: str, body: bytes) -> Outcome: ...
    def goodbye(self, path: str, body: bytes) -> Outcome: ...


class Transport(Protocol):
    def post(self, path: str, body: bytes, headers: Mapping[str, str], *, timeout_s: float) -> HttpAnswer: ...
    def close(self) -> None: ...


class _Accepted(msgspec.Struct, frozen=True):
    """`cloned` is a flag in the answer to one heartbeat, and a list of ids in that to a batch."""

    next_heartbeat_s: Annotated[float, msgspec.Meta(gt=0)] | None
    cloned: bool | list[str] = False


class _Problem(msgspec.Struct, frozen=True):
    code: str = ""
    detail: str = ""
    errors: msgspec.Raw = msgspec.Raw(b"")


_accepted = msgspec.json.Decoder(_Accepted)
_problem = msgspec.json.Decoder(_Problem)


class Delivery:
    """Stays with the server that took the last heartbeat; walks on through the list when one fails."""

    def __init__(
        self,
        servers: tuple[str, ...],
        *,
        timeout_s: float,
        token: Callable[[], str],
        pause: Pause,
        connect: Callable[[str], Transport],
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self._servers = servers
        self._timeout_s = timeout_s
        self._token = token
        self._alive = alive
        self._pause = pause
        self._transports = [connect(server) for server in servers]
        self._current = 0
        self._told: set[str] = set()

    def deliver(self, path: str, body: bytes) -> Outcome:
        """Tries each server once.

        Raises:
            StopRequestedError: the agent is to end; the connection in use was given up.
        """
        outcome = Outcome()
        for _ in self._servers:
            # Several servers that do not answer may take longer together than a watchdog waits.
            self._alive()
            with self._pause.interruptible():
                outcome = self._try(path, body, self._timeout_s)
            if outcome.accepted:
                self._tell_recovery()
                return outcome
            self._tell_trouble(outcome)
            if outcome.refused:
                return outcome
            self._current = (self._current + 1) % len(self._servers)
        return outcome

    def goodbye(self, path: str, body: bytes) -> Outcome:
        """One try at the server in use, short enough for a shutdown."""
        return self._try(path, body, min(self._timeout_s, _GOODBYE_S))

    def close(self) -> None:
        for transport in self._transports:
            transport.close()

    def _try(self, path: str, body: bytes, timeout_s: float) -> Outcome:
        headers = {"Content-Type": "application/msgpack", "Accept": "application/json"}
        token = self._token()
        if token:
            headers["Authorization"] = f"Bearer {token}"
        try:
            answer = self._transports[self._current].post(path, body, headers, timeout_s=timeout_s)
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            # UnicodeError: a host name that IDNA cannot encode.
            return Outcome(detail=str(error) or type(error).__name__)
        return read_answer(answer)

    def _tell_trouble(self, outcome: Outcome) -> None:
        """Each kind of trouble once until it works again: a night without network must not fill a disk."""
        trouble = f"{self._servers[self._current]}: {outcome.detail}"
        if trouble not in self._told and len(self._told) < _MOST_TOLD:
            self._told.add(trouble)
            _log.warning("Heartbeat not delivered: %s", trouble)

    def _tell_recovery(self) -> None:
        if self._told:
            _log.info("Heartbeats are delivered, to %s", self._servers[self._current])
        self._told.clear()


def read_answer(answer: HttpAnswer) -> Outcome:
    """Only a Headroom's 202 counts: a captive portal answers 200 to anything."""
    if answer.status == _ACCEPTED:
        try:
            accepted = _accepted.decode(answer.body)
        except msgspec.DecodeError:
            return Outcome(detail="the answer is not Headroom's")
        return Outcome(
            accepted=True,
            next_heartbeat_s=accepted.next_heartbeat_s,
            cloned=bool(accepted.cloned),
            body=answer.body,
        )
    detail = f"status {answer.status}"
    try:
        problem = _problem.decode(answer.body)
        said = f" {bytes(problem.errors).decode(errors='replace')}" if bytes(problem.errors) else ""
        detail = f"{detail} {problem.code}: {problem.detail}{said}"[:_LONGEST_DETAIL]
    except msgspec.DecodeError:
        # Not from Headroom; the status has to do.
        return Outcome(detail=detail, retry_after_s=answer.retry_after_s)
    return Outcome(refused=answer.status in _AT_FAULT, retry_after_s=answer.retry_after_s, detail=detail)


def open_delivery(config: Config, pause: Pause, alive: Callable[[], None] = lambda: None) -> Delivery:
    """Raises StartupRefusedError when the certificates or the token cannot be read."""
    token = _token_reader(config)
    token()
    tls = None
    if any(server.startswith("https:") for server in config.server):
        try:
            tls = ssl.create_default_context(cafile=config.ca_file or None)
        except OSError as error:
            raise StartupRefusedError(f"ca_file cannot be used: {error}") from error
    return Delivery(
        config.server,
        timeout_s=config.timeout_s,
        token=token,
        pause=pause,
        connect=functools.partial(Connection, tls=tls),
        alive=alive,
    )


def _token_reader(config: Config) -> Callable[[], str]:
    if not config.token_file:
        return lambda: config.token
    last = ""

    def read() -> str:
        nonlocal last
        try:
            last = _token_of(Path(config.token_file))
        except (OSError, ValueError) as error:
            # While it is being replaced the old one may still do.
            if not last:
                raise StartupRefusedError(f"token_file cannot be read: {error}") from error
        return last

    return read


def _token_of(path: Path) -> str:
    token = path.read_text(encoding="ascii").strip()
    if not token.isprintable():
        raise ValueError("it holds more than one line of text")
    return token
