"""What a planner's connection says to Redis: lookups as bare commands, for blocking and asyncio connections."""

from __future__ import annotations

import logging
import re
from collections.abc import Generator
from typing import Any, Final, TypeVar

from redis import exceptions as redis_errors

from app.errors import HeadroomError, IndexRebuildingError, IndexUnavailableError
from app.index import shortcut
from app.index.clock import IndexClock
from app.index.connect import is_not_now
from app.index.epoch import trusted_epoch
from app.index.keys import Keys
from app.index.lookup import Steps, Trusting
from app.index.scripts import Call
from app.index.shortcut import Batch
from app.models.capacity import CapacityPage, CapacityQuery
from app.models.identity import AgentId

T = TypeVar("T")

Commands = Generator[Batch, list[Any], T]
"""A conversation as the commands it sends, some at once: send it their replies, throw a server error into it."""

_RUN_ID: Final = re.compile(rb"run_id:(\w+)")

_REFUSED_IN_SCRIPT: Final = "ACL failure in script"

_log = logging.getLogger(__name__)


class Session:
    """What one connection knows of its server: which run of it this is, and which epoch to trust.

    A connection ends with its server, so nothing here outlives a restart or a failover.
    """

    def __init__(self, keys: Keys, clock: IndexClock) -> None:
        self._keys = keys
        self._clock = clock
        self._shortcut = True
        self._run_id: str | None = None
        self._epoch: str | None = None

    def find(
        self, query: CapacityQuery, steps: Steps[CapacityPage], *, with_total: bool = False
    ) -> Commands[CapacityPage]:
        """By the shortcut where it knows the answer, else by the steps. Raises what `run` raises."""
        batch: Batch | None = None
        if self._shortcut and self._epoch is not None:
            batch = shortcut.commands(self._keys, query, with_total=with_total)
        if batch is not None:
            try:
                replies = yield batch
                page = shortcut.read(query, replies, epoch=self._epoch or "", now_ms=self._clock.now_ms())
                if page is not None:
                    return page
            except redis_errors.ResponseError as error:
                if is_not_now(error):
                    raise
                # An old server, a cluster, or a user who may not read every key.
                self._shortcut = False
                _log.debug("Searches run as scripts on this connection: %s", error)
        return (yield from self.run(steps))

    def run(self, steps: Steps[T]) -> Commands[T]:
        """Raises IndexRebuildingError while there is no epoch to trust."""
        reply: Any = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as end:
                result: T = end.value
                return result
            reply = yield from (self._tidy(step) if isinstance(step, Call) else self._trusting(step))

    @staticmethod
    def ping() -> Commands[None]:
        yield [("PING",)]

    def _trusting(self, make_call: Trusting) -> Commands[Any]:
        for _ in range(2):
            if self._epoch is None:
                (epoch,) = yield [("GET", self._keys.epoch)]
                yield from self._learn(epoch)
            reply = yield from _script(make_call(self._epoch or ""))
            if reply[0] != b"epoch":
                return reply
            yield from self._learn(reply[1])
        raise IndexRebuildingError

    def _learn(self, epoch: bytes | None) -> Commands[None]:
        self._epoch = None
        if self._run_id is None:
            (info,) = yield [("INFO", "server")]
            found = _RUN_ID.search(info)
            self._run_id = found[1].decode() if found else ""
        self._epoch = trusted_epoch(epoch or b"", self._run_id)

    @staticmethod
    def _tidy(call: Call) -> Commands[Any]:
        try:
            return (yield from _script(call))
        except redis_errors.ResponseError as error:
            # A user who may only read: the lookup goes on past the silent agents.
            _log.debug("Silent agents stay where they are: %s", error)
            return None


def _script(call: Call) -> Commands[Any]:
    script = call.script
    try:
        (reply,) = yield [("EVALSHA", script.sha, 1, call.prefix, *call.arguments)]
    except redis_errors.NoScriptError:
        (reply,) = yield [("EVAL", script.source, 1, call.prefix, *call.arguments)]
    return reply


def domain_error(error: Exception) -> HeadroomError:
    """What a planner is told of a fault of Redis or of the way to it."""
    refused = isinstance(error, redis_errors.AuthenticationError | redis_errors.NoPermissionError)
    if refused or _REFUSED_IN_SCRIPT in str(error):
        return IndexUnavailableError(
            "The capacity index refuses this user, its password, or a command that lookups need"
        )
    if isinstance(error, redis_errors.ResponseError) and not is_not_now(error):
        if "INDEX_REBUILDING" in str(error):
            return IndexRebuildingError()
        return HeadroomError("The capacity index refused a lookup")
    return IndexUnavailableError()


def skip(agent_id: AgentId) -> None:
    _log.warning("Skipped the metrics of agent %s: they cannot be read", agent_id)
