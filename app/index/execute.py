"""Runs script calls on an asyncio client."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

import redis.asyncio as aredis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

from app.index.scripts import Call

_SHORT_S: Final = 0.000_6
_LONG_S: Final = 0.001_2
"""Script calls that take less together are sent with more of them the next time, and with fewer above this."""

_MOST_AT_ONCE: Final = 8

_MOST_TURNS: Final = 32
"""So many turns a caller keeps a connection: others may wait for it, and would give up during a whole page."""


class Pace:
    """How many script calls are sent together: as many as take a moment, and never less than `least`."""

    def __init__(self, least: int = 1) -> None:
        self._least = least
        self.at_once = least

    def adapt(self, took_s: float) -> None:
        if took_s > _LONG_S:
            self.at_once = max(self._least, self.at_once // 2)
        elif took_s < _SHORT_S:
            self.at_once = max(self._least, min(_MOST_AT_ONCE, self.at_once * 2))


async def run(client: aredis.Redis, call: Call) -> Any:
    """Runs the script, loading it first where the server does not know it (any more)."""
    script = call.script
    try:
        return await client.evalsha(script.sha, 1, call.prefix, *call.arguments)
    except NoScriptError:
        return await client.eval(script.source, 1, call.prefix, *call.arguments)


async def run_few_at_a_time(client: aredis.Redis, calls: Iterator[Call], pace: Pace, *, ahead: bool) -> list[Any]:
    """Runs any number of calls in order, few at a time: Redis runs what it has read, then sees lookups.

    Each call is atomic by itself, not all together. Some may run twice, or after one that follows them: when the
    server has lost a script, and when the caller repeats all after an error. This is for scripts that an order
    guard makes safe to repeat.

    Args:
        client: whose connections are used, one at a time.
        calls: the next few are prepared while Redis works.
        pace: how many are few.
        ahead: send the next few before the last have been answered. Redis then works without a pause, and a lookup
            waits for two turns where it would have waited for one.

    Raises:
        ResponseError: a call failed. Those sent with it or right after it may have been run all the same.
    """
    replies: list[Any] = []
    most_waiting = 2 if ahead else 1
    following = list(islice(calls, pace.at_once))
    while following:
        connection: Any = client.connection_pool.get_connection()  # type: ignore[no-untyped-call]  # redis-py's own
        line = _Line(client, await connection)
        answered_s = time.perf_counter()
        turns = 0
        try:
            while line.waiting or (following and turns < _MOST_TURNS):
                while following and turns < _MOST_TURNS and line.waiting < most_waiting:
                    await line.send(following)
                    turns += 1
                    following = list(islice(calls, pace.at_once))
                replies += await line.receive()
                before_s, answered_s = answered_s, time.perf_counter()
                pace.adapt(answered_s - before_s)
        finally:
            await line.close()
        # Whoever waits for a connection comes first.
        await asyncio.sleep(0)
    return replies


class _Line:
    """One connection, on which more is sent before what was sent earlier has been answered."""

    def __init__(self, client: aredis.Redis, connection: Any) -> None:
        self._client = client
        self._connection = connection  # redis-py leaves its methods untyped
        self._sent: deque[list[Call]] = deque()

    @property
    def waiting(self) -> int:
        """Batches without an answer."""
        return len(self._sent)

    async def send(self, batch: list[Call]) -> None:
        await self._send(batch, [_command(call) for call in batch])

    async def _send(self, batch: list[Call], commands: list[tuple[Any, ...]]) -> None:
        if self._sent and not self._connection.is_connected:
            # It would connect anew, and take the next replies for those that will not come.
            raise RedisConnectionError("Closed while replies were on their way")
        packed = self._connection.pack_commands(commands)
        self._sent.append(batch)
        # A check of the connection's health would take a reply that is on its way for its own.
        await self._connection.send_packed_command(packed, check_health=len(self._sent) == 1)

    async def receive(self) -> list[Any]:
        """The replies to the oldest batch."""
        replies = await self._read(self._sent[0])
        if any(isinstance(reply, NoScriptError) for reply in replies):
            replies = await self._send_again()
        self._sent.popleft()
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    async def close(self) -> None:
        if self._sent:
            # Whoever had the connection next would take these replies for its own.
            await self._connection.disconnect(nowait=True)
        await self._client.connection_pool.release(self._connection)

    async def _send_again(self) -> list[Any]:
        for batch in islice(self._sent, 1, None):
            await self._read(batch)
        sent, self._sent = self._sent, deque()
        for batch in sent:
            # With their source: loaded first, they could be lost again before they run.
            await self._send(
                batch, [("EVAL", call.script.source, 1, call.prefix, *call.arguments) for call in batch]
            )
        return await self._read(self._sent[0])

    async def _read(self, batch: list[Call]) -> list[Any]:
        replies: list[Any] = []
        for _ in batch:
            try:
                replies.append(await self._connection.read_response())
            except ResponseError as error:
                replies.append(error)
        return replies


def _command(call: Call) -> tuple[Any, ...]:
    return "EVALSHA", call.script.sha, 1, call.prefix, *call.arguments
