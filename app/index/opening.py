"""Opens the index: entry points build their view of it here, everybody else sees `app.service.ports`."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import redis.asyncio as aredis

from app.index.audit import IndexAudit
from app.index.clock import IndexClock, ServerClock
from app.index.connect import connect, connect_reader, on_connect, server_run_id
from app.index.epoch import EpochGuard
from app.index.feed import RedisFeed
from app.index.fleet import RedisFleet
from app.index.health import RedisHealth
from app.index.index import RedisIndex
from app.index.insight import Insights, RedisInsight
from app.index.keys import GROUP_INDEX, GROUP_RECORD, Keys
from app.index.links import AsyncLinks
from app.index.requirements import refuse_unfit_server
from app.index.states import IndexStates
from app.index.stream import GroupReader, HeartbeatStream, StreamUpkeep
from app.index.upkeep import Upkeep

if TYPE_CHECKING:
    from app.settings import Settings


class Index:
    """One process's view of the index: the ports it implements, and the workers' sides of it."""

    def __init__(
        self,
        settings: Settings,
        client: aredis.Redis,
        *,
        clock: IndexClock,
        read_run_id: Callable[[aredis.Redis], Awaitable[str]] = server_run_id,
        links: AsyncLinks | None = None,
    ) -> None:
        self._settings = settings
        self._clients = [client]
        self._links = links
        self._clock = clock
        self.keys = Keys()
        self.epochs = EpochGuard(client, self.keys, read_run_id=read_run_id)
        self.capacity = RedisIndex(
            client, self.keys, self.epochs, clock, offline_after_s=settings.offline_after_s, links=links
        )
        self.cordons = self.capacity
        self.insight = RedisInsight(Insights(self.keys, self.capacity.lookups), self.capacity.run)
        self.fleet = RedisFleet(client, self.keys, self.epochs)
        self.log = HeartbeatStream(client, self.keys, clock, offline_after_s=settings.offline_after_s)
        self.upkeep = Upkeep(
            client,
            self.keys,
            self.epochs,
            clock,
            offline_after_s=settings.offline_after_s,
            forget_after_d=settings.forget_after_d,
        )
        self.health = RedisHealth(client, self.keys, self.epochs, self.upkeep)
        self.states = IndexStates(client, self.keys)
        self.audit = IndexAudit(client, self.keys)
        self.stream = StreamUpkeep(client, self.keys, max_entries=settings.stream_max_entries)

    async def refuse_unfit_server(self) -> None:
        """Raises StartupRefusedError for a server that would lose data or lacks commands."""
        await refuse_unfit_server(self._clients[0])

    def feed(self) -> RedisFeed:
        """A reader of the change feed, with a connection of its own to block on."""
        if self._settings.redis_url is None:
            return RedisFeed(self._clients[0], self.keys, self._clock)
        client = connect_reader(self._settings, purpose="feed")
        self._clients.append(client)
        return RedisFeed(client, self.keys, self._clock)

    def index_reader(self) -> GroupReader:
        return self._reader(GROUP_INDEX, self._settings.ingest_batch)

    def record_reader(self) -> GroupReader:
        return self._reader(GROUP_RECORD, self._settings.record_batch)

    async def close(self) -> None:
        for client in self._clients:
            await client.aclose()
        if self._links is not None:
            await self._links.close()

    def _reader(self, group: str, batch: int) -> GroupReader:
        client = connect_reader(self._settings, purpose=group)
        self._clients.append(client)
        return GroupReader(
            client,
            self.keys,
            group,
            consumer_name(),
            batch=batch,
            block_s=self._settings.stream_block_s,
            takeover_after_s=self._settings.takeover_after_s,
        )


def open_index(settings: Settings, *, purpose: str = "api", clock: IndexClock | None = None) -> Index:
    """Builds the clients; nothing is sent before the first call.

    Args:
        settings: `redis_url` must be set.
        purpose: shows in CLIENT LIST as `headroom-<purpose>`.
        clock: injected by tests; the server's own when left out.
    """
    client = connect(settings, purpose=purpose)
    own_clock = clock if clock is not None else ServerClock()
    links = AsyncLinks(
        settings.redis_url or "",
        timeout_s=settings.redis_timeout_s,
        clock=own_clock,
        most=settings.redis_pool_size,
        purpose=f"{purpose}-lookups",
    )
    index = Index(settings, client, clock=own_clock, links=links)
    on_connect(client, index.epochs.reconnected)
    return index


def consumer_name() -> str:
    """Unique per process start: what a dead process left pending is taken over, never mistaken for its own."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
