"""Connections for lookups from an event loop: each conversation with Redis has one to itself.

They are redis-py's blocking ones. Redis answers a lookup sooner than an event loop gets round to reading it, so
the reply is first waited for on the spot, for a moment; only one that does not come then is left to the loop.
docs/decisions, "Short waits on the spot", has the figures.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from redis import Connection, ConnectionPool
from redis import exceptions as redis_errors
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.errors import HeadroomError, IndexUnavailableError
from app.index.clock import IndexClock
from app.index.epoch import OtherServerError
from app.index.keys import Keys
from app.index.packing import packing
from app.index.session import Commands, Session, domain_error

T = TypeVar("T")

Conversation = Callable[[Session], Commands[T]]

FAULTS: Final = (redis_errors.RedisError, OSError)

TIMEOUTS: Final = (redis_errors.TimeoutError, TimeoutError)

_PATIENCE_S: Final = 0.000_3
"""The event loop stands still for at most so long per round trip."""

_IMPATIENT: Final = 16
"""So many round trips are left to the loop after one that took longer: Redis is busy, away, or far."""

_CONNECTING: Final = 8


class _Link:
    """One connection with what it knows of its server."""

    def __init__(self, connection: Connection, clock: IndexClock) -> None:
        self.connection: Any = connection  # redis-py leaves its methods untyped
        self.session = Session(Keys(), clock)


class AsyncLinks:
    """The connections of one process to one server.

    Args:
        url: of the server.
        timeout_s: longest wait for one round trip, and for a connection when all are taken.
        clock: that lookups count with.
        most: connections at a time; None for as many as there are conversations.
        purpose: shows in CLIENT LIST as `headroom-<purpose>`.
    """

    def __init__(
        self, url: str, *, timeout_s: float, clock: IndexClock, most: int | None = None, purpose: str = "client"
    ) -> None:
        pool = ConnectionPool.from_url(url)
        self._connection_class = packing(pool.connection_class)
        self._options = pool.connection_kwargs | options(timeout_s, purpose)
        self._timeout_s = timeout_s
        self._clock = clock
        self._places = None if most is None else asyncio.Semaphore(most)
        self._closed = False
        self._idle: list[_Link] = []
        self._left_to_loop = 0
        # Of their own: a server that hangs must not use up the threads that others look up names with.
        self._threads: ThreadPoolExecutor | None = None

    async def run(self, conversation: Conversation[T]) -> T:
        """Raises IndexUnavailableError or IndexRebuildingError; may hold the conversation a second time."""
        if self._places is None:
            return await self._run(conversation)
        if self._places.locked():
            try:
                # Not wait_for: in Python 3.11 that swallows a caller's own timeout in the moment a place is free.
                async with asyncio.timeout(self._timeout_s):
                    await self._places.acquire()
            except TimeoutError as error:
                raise IndexUnavailableError("All connections to the capacity index are taken") from error
        else:
            await self._places.acquire()
        try:
            return await self._run(conversation)
        finally:
            self._places.release()

    async def close(self) -> None:
        self._closed = True
        self._drop_idle()
        if self._threads is not None:
            self._threads.shutdown(wait=False)

    async def _run(self, conversation: Conversation[T]) -> T:
        if not self._idle:
            return await self._run_anew(conversation)
        started = time.monotonic()
        try:
            return await self._run_on(self._idle.pop(), conversation)
        except (redis_errors.ConnectionError, OtherServerError):
            # The server restarted, was replaced, or cut an idle connection; the others are as old. Lookups may be
            # repeated.
            self._drop_idle()
            return await self._run_anew(conversation)
        except FAULTS as error:
            if isinstance(error, TIMEOUTS):
                # A firewall may have forgotten this connection and the others: no second call waits for one.
                self._drop_idle()
            raise domain_error(error) from error
        except asyncio.CancelledError:
            # As above; the caller's own limit may have come just before ours.
            if time.monotonic() - started > self._timeout_s / 2:
                self._drop_idle()
            raise

    async def _run_anew(self, conversation: Conversation[T]) -> T:
        try:
            return await self._run_on(await self._connected(), conversation)
        except FAULTS as error:
            raise domain_error(error) from error

    async def _connected(self) -> _Link:
        if self._closed:
            raise IndexUnavailableError("The connections to the capacity index are closed")
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_CONNECTING, "headroom-connect")
        connection: Any = self._connection_class(**self._options)
        connecting = self._threads.submit(connection.connect)
        try:
            # The threads may all be busy with a server that does not answer.
            async with asyncio.timeout(self._timeout_s):
                await asyncio.wrap_future(connecting)
        except (asyncio.CancelledError, TimeoutError):
            # The thread may be about to connect all the same.
            connecting.add_done_callback(lambda _: connection.disconnect())
            raise
        return _Link(connection, self._clock)

    async def _run_on(self, link: _Link, conversation: Conversation[T]) -> T:
        try:
            answer = await self._converse(link.connection, conversation(link.session))
        except OtherServerError:
            # Given back, it would lead to the replaced server for as long as that one lives.
            link.connection.disconnect()
            raise
        except HeadroomError:
            self._give_back(link)
            raise
        except BaseException:
            # A reply may still be on its way: nothing else may be read from this connection.
            link.connection.disconnect()
            raise
        self._give_back(link)
        return answer

    async def _converse(self, connection: Any, commands: Commands[T]) -> T:
        try:
            batch = next(commands)
            while True:
                connection.send_packed_command(connection.pack_commands(batch))
                reading = _Replies(connection, len(batch))
                if not self._read_on_the_spot(reading):
                    async with asyncio.timeout(self._timeout_s):
                        while not reading.read(0):
                            await _readable(connection)
                refused = reading.refused
                batch = commands.throw(refused) if refused else commands.send(reading.replies)
        except StopIteration as end:
            result: T = end.value
            return result

    def _read_on_the_spot(self, reading: _Replies) -> bool:
        if self._left_to_loop:
            self._left_to_loop -= 1
            return False
        if reading.read(_PATIENCE_S):
            return True
        self._left_to_loop = _IMPATIENT
        return False

    def _give_back(self, link: _Link) -> None:
        self._idle.append(link)
        if self._closed:
            self._drop_idle()

    def _drop_idle(self) -> None:
        while self._idle:
            self._idle.pop().connection.disconnect()


class _Replies:
    """The replies to one batch, as they come in."""

    def __init__(self, connection: Any, expected: int) -> None:
        self._connection = connection
        self._expected = expected
        self.replies: list[Any] = []
        self.refused: redis_errors.ResponseError | None = None

    def read(self, patience_s: float) -> bool:
        """Reads what there is; True once all are read. Raises ConnectionError when there will be no more."""
        while self._expected:
            try:
                reply = self._connection.read_response(timeout=patience_s, disconnect_on_error=False)
            except redis_errors.TimeoutError:
                return False
            except redis_errors.ResponseError as error:
                self.refused = self.refused or error
            else:
                self.replies.append(reply)
            self._expected -= 1
        return True


async def _readable(connection: Any) -> None:
    loop = asyncio.get_running_loop()
    readable = loop.create_future()
    number = connection._sock.fileno()  # noqa: SLF001  redis-py shows its socket nowhere else
    loop.add_reader(number, _resolve, readable)
    try:
        await readable
    finally:
        loop.remove_reader(number)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def options(timeout_s: float | None, purpose: str = "client") -> dict[str, Any]:
    """What every connection of a planner is like, whatever its URL says."""
    return {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "client_name": f"headroom-{purpose}",
        "decode_responses": False,
        "protocol": 2,
    }
