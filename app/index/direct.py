"""Lookups straight from Redis without settings or service: what a planner's client runs on.

Each call has a connection to itself and knows that connection's epoch, so an ordinary lookup is one round trip.
redis-py's client and pool stay out of the way: they cost as much time as the network.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any, TypeVar

from redis import Connection, ConnectionPool
from redis import exceptions as redis_errors

from app.errors import HeadroomError
from app.index import changes
from app.index.clock import IndexClock, ServerClock
from app.index.epoch import OtherServerError
from app.index.insight import Insights
from app.index.keys import Keys
from app.index.links import FAULTS, TIMEOUTS, AsyncLinks, Conversation, options
from app.index.lookup import Lookups
from app.index.packing import packing
from app.index.session import Commands, Session, domain_error, skip
from app.models.capacity import AgentCapacity, CapacityPage, CapacityQuery
from app.models.change import Change, EventFilter
from app.models.identity import AgentId, StreamId
from app.models.insight import Explanation, Fit, PoolTotals

T = TypeVar("T")


class _Link:
    """One blocking connection with what it knows of its server."""

    def __init__(self, connection: Connection, clock: IndexClock) -> None:
        self.connection: Any = connection  # redis-py leaves its methods untyped
        self.session = Session(Keys(), clock)

    def run(self, commands: Commands[T]) -> T:
        connection = self.connection
        try:
            batch = next(commands)
            while True:
                connection.send_packed_command(connection.pack_commands(batch))
                replies, refused = [], None
                for _ in batch:
                    try:
                        replies.append(connection.read_response())
                    except redis_errors.ResponseError as error:
                        refused = refused or error
                batch = commands.throw(refused) if refused else commands.send(replies)
        except StopIteration as end:
            result: T = end.value
            return result


class DirectIndex:
    """Blocking lookups on one shard. Threads may share it: each call takes a connection of its own.

    A forked child makes its own connections; those of its parent stay the parent's.
    """

    def __init__(self, url: str, *, timeout_s: float, clock: IndexClock | None = None) -> None:
        pool = ConnectionPool.from_url(url)
        self._connection_class = packing(pool.connection_class)
        self._options = pool.connection_kwargs | options(timeout_s)
        self._clock = ServerClock() if clock is None else clock
        self._timeout_s = timeout_s
        self._keys = Keys()
        self._lookups = Lookups(self._keys, self._clock, offline_after_ms=None, skip=skip)
        self._insights = Insights(self._keys, self._lookups)
        self._closed = False
        self._pid = os.getpid()
        # Taking from and adding to a deque is atomic: no lock.
        self._idle: deque[_Link] = deque()

    def find(self, query: CapacityQuery, *, with_total: bool = False) -> CapacityPage:
        steps = partial(self._lookups.find, with_total=with_total, to_the_end=True)
        return self._run(lambda session: session.find(query, steps(query), with_total=with_total))

    def wait(self, query: CapacityQuery, *, wait_s: float) -> CapacityPage:
        """As `find`; an answer without agents is given only after `wait_s`."""
        deadline = time.monotonic() + wait_s
        steps = partial(self._lookups.find, with_total=False, to_the_end=True)
        block_s = self._timeout_s / 2
        return self._run(
            lambda session: changes.wait(session, self._keys, query, steps, deadline=deadline, block_s=block_s)
        )

    def explain(self, query: CapacityQuery) -> Explanation:
        return self._run(lambda session: session.run(self._insights.explain(query)))

    def fit(self, query: CapacityQuery) -> Fit:
        return self._run(lambda session: session.run(self._insights.fit(query)))

    def summary(
        self, *, agent_type: str | None, pool_name: str | None, limit: int, after: str | None
    ) -> tuple[list[PoolTotals], str | None]:
        steps = partial(
            self._insights.summary, agent_type=agent_type, pool_name=pool_name, limit=limit, after=after
        )
        return self._run(lambda session: session.run(steps()))

    def events(self, wanted: EventFilter, after: StreamId | None) -> Iterator[Change]:
        """Without an end; what comes after the version, or from now on."""
        last = self._run(lambda _session: changes.newest(self._keys)) if after is None else after
        while True:
            found = self._run(self._after(last))
            last = found[-1].version if found else last
            yield from filter(wanted.wants, found)

    def _after(self, version: StreamId) -> Conversation[list[Change]]:
        return lambda _session: changes.read(self._keys, version, block_s=self._timeout_s / 2)

    def get(self, agent_id: AgentId) -> AgentCapacity | None:
        return self._run(lambda session: session.run(self._lookups.get(agent_id)))

    def count(self, query: CapacityQuery) -> int:
        return self._run(lambda session: session.run(self._lookups.count(query)))

    def ping(self) -> None:
        self._run(lambda session: session.ping())

    def close(self) -> None:
        self._closed = True
        self._drop_idle()

    def _run(self, conversation: Conversation[T]) -> T:
        if os.getpid() != self._pid:
            self._pid, self._idle = os.getpid(), deque()
        link = self._take_idle()
        if link is None:
            return self._run_anew(conversation)
        try:
            return self._run_on(link, conversation)
        except (redis_errors.ConnectionError, OtherServerError):
            # The server restarted, was replaced, or cut an idle connection; the others are as old. Lookups may be
            # repeated.
            self._drop_idle()
            return self._run_anew(conversation)
        except FAULTS as error:
            if isinstance(error, TIMEOUTS):
                # A firewall may have forgotten this connection and the others: no second call waits for one.
                self._drop_idle()
            raise domain_error(error) from error

    def _run_anew(self, conversation: Conversation[T]) -> T:
        try:
            return self._run_on(_Link(self._connection_class(**self._options), self._clock), conversation)
        except FAULTS as error:
            raise domain_error(error) from error

    def _run_on(self, link: _Link, conversation: Conversation[T]) -> T:
        try:
            answer = link.run(conversation(link.session))
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

    def _give_back(self, link: _Link) -> None:
        self._idle.append(link)
        if self._closed:
            self._drop_idle()

    def _take_idle(self) -> _Link | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _drop_idle(self) -> None:
        while (link := self._take_idle()) is not None:
            link.connection.disconnect()


class AsyncDirectIndex:
    """Lookups on one shard for one event loop. Tasks may share it: each call takes a connection of its own."""

    def __init__(self, url: str, *, timeout_s: float, clock: IndexClock | None = None) -> None:
        own_clock = ServerClock() if clock is None else clock
        self._links = AsyncLinks(url, timeout_s=timeout_s, clock=own_clock)
        self._timeout_s = timeout_s
        self._keys = Keys()
        self._lookups = Lookups(self._keys, own_clock, offline_after_ms=None, skip=skip)
        self._insights = Insights(self._keys, self._lookups)

    async def find(self, query: CapacityQuery, *, with_total: bool = False) -> CapacityPage:
        steps = partial(self._lookups.find, with_total=with_total, to_the_end=True)
        return await self._links.run(lambda session: session.find(query, steps(query), with_total=with_total))

    async def wait(self, query: CapacityQuery, *, wait_s: float) -> CapacityPage:
        deadline = time.monotonic() + wait_s
        steps = partial(self._lookups.find, with_total=False, to_the_end=True)
        block_s = self._timeout_s / 2
        return await self._links.run(
            lambda session: changes.wait(session, self._keys, query, steps, deadline=deadline, block_s=block_s)
        )

    async def explain(self, query: CapacityQuery) -> Explanation:
        return await self._links.run(lambda session: session.run(self._insights.explain(query)))

    async def fit(self, query: CapacityQuery) -> Fit:
        return await self._links.run(lambda session: session.run(self._insights.fit(query)))

    async def summary(
        self, *, agent_type: str | None, pool_name: str | None, limit: int, after: str | None
    ) -> tuple[list[PoolTotals], str | None]:
        steps = partial(
            self._insights.summary, agent_type=agent_type, pool_name=pool_name, limit=limit, after=after
        )
        return await self._links.run(lambda session: session.run(steps()))

    async def events(self, wanted: EventFilter, after: StreamId | None) -> AsyncIterator[Change]:
        last = await self._links.run(lambda _session: changes.newest(self._keys)) if after is None else after
        while True:
            found = await self._links.run(self._after(last))
            last = found[-1].version if found else last
            for change in filter(wanted.wants, found):
                yield change

    def _after(self, version: StreamId) -> Conversation[list[Change]]:
        return lambda _session: changes.read(self._keys, version, block_s=self._timeout_s / 2)

    async def get(self, agent_id: AgentId) -> AgentCapacity | None:
        return await self._links.run(lambda session: session.run(self._lookups.get(agent_id)))

    async def count(self, query: CapacityQuery) -> int:
        return await self._links.run(lambda session: session.run(self._lookups.count(query)))

    async def ping(self) -> None:
        await self._links.run(lambda session: session.ping())

    async def close(self) -> None:
        await self._links.close()
