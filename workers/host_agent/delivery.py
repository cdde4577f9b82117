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
from workers.host_agent.clock import Clock, Pause
from workers.host_agent.config import Config
from workers.host_agent.connection import AnswerLostError, Connection, HttpAnswer
from workers.host_agent.schedule import MAX_INTERVAL_S

# Short enough for a shutdown: for one server, and for all of them.
_GOODBYE_S: Final = 3.0
_GOODBYES_S: Final = 6.0
_LONGEST_DETAIL: Final = 300
_MOST_TOLD: Final = 16
_ACCEPTED: Final = 202
_AT_FAULT: Final = frozenset({400, 413, 415, 422})
_log = logging.getLogger("headroom.agent")


class Outcome(NamedTuple):
    """What became of a heartbeat.

    Attributes:
        refused: a server read it and would refuse it again.
        maybe_taken: it left, and no answer said what became of it.
        retry_after_s: how long the servers want to be left alone; None where one of them did not say.
    """

    accepted: bool = False
    refused: bool = False
    maybe_taken: bool = False
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
    """Stays with the server that took the last heartbeat; walks on through the list when one fails.

    A server that answered with `Retry-After` is left out until that time has passed, while the others are tried.
    """

    def __init__(
        self,
        servers: tuple[str, ...],
        *,
        timeout_s: float,
        token: Callable[[], str],
        pause: Pause,
        clock: Clock,
        connect: Callable[[str], Transport],
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self._servers = servers
        self._timeout_s = timeout_s
        self._token = token
        self._alive = alive
        self._pause = pause
        self._clock = clock
        self._transports = [connect(server) for server in servers]
        self._not_before_s = [float("-inf")] * len(servers)
        self._current = 0
        self._told: set[str] = set()

    def deliver(self, path: str, body: bytes) -> Outcome:
        """Tries each server once that does not want to be left alone.

        Raises:
            StopRequestedError: the agent is to end; the connection in use was given up.
        """
        outcome, maybe_taken = Outcome(), False
        for server in self._in_turn():
            if self._clock.now_s() < self._not_before_s[server]:
                continue
            self._current = server
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
            maybe_taken = maybe_taken or outcome.maybe_taken
            self._not_before_s[server] = self._clock.now_s() + min(outcome.retry_after_s or 0.0, MAX_INTERVAL_S)
        self._current = self._in_turn()[1 % len(self._servers)]
        return outcome._replace(maybe_taken=maybe_taken, retry_after_s=self._left_alone_s())

    def goodbye(self, path: str, body: bytes) -> Outcome:
        """One try at each server until one takes it, short enough for a shutdown in all."""
        outcome = Outcome()
        deadline_s = self._clock.now_s() + _GOODBYES_S
        for server in self._in_turn():
            left_s = deadline_s - self._clock.now_s()
            if left_s <= 0:
                break
            self._current = server
            outcome = self._try(path, body, min(self._timeout_s, _GOODBYE_S, left_s))
            if outcome.accepted or outcome.refused:
                break
        return outcome

    def _in_turn(self) -> list[int]:
        """All servers, the one in use first."""
        every = range(len(self._servers))
        return [*every[self._current :], *every[: self._current]]

    def _left_alone_s(self) -> float | None:
        """Until the first server may be asked again; None when one may at once, as far as it said."""
        left_s = min(self._not_before_s) - self._clock.now_s()
        return left_s if left_s > 0 else None

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
        except AnswerLostError as error:
            return Outcome(detail=str(error), maybe_taken=True)
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


def open_delivery(
    config: Config, pause: Pause, clock: Clock, alive: Callable[[], None] = lambda: None
) -> Delivery:
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
        clock=clock,
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
                raise StartupRefusedError(f"token_file {config.token_file} cannot be used: {error}") from error
        return last

    return read


def _token_of(path: Path) -> str:
    token = path.read_text(encoding="ascii").strip()
    if not token:
        raise ValueError("it is empty")
    if not token.isprintable():
        raise ValueError("it holds more than one line of text")
    return token
