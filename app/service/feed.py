"""One reader of the change feed for a whole process: whoever waits or listens is told by it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Final, Protocol

from app.errors import IndexUnavailableError
from app.models.change import Change, ChangeKind
from app.models.identity import StreamId
from app.service.ports import ChangeFeed
from app.telemetry import FEED_BEHIND, FEED_CHANGES

log = logging.getLogger(__name__)

_IDLE_S: Final = 1.0
_REACH_S: Final = 5.0
_REPLAYS: Final = 4
"""Listeners that may catch up side by side; a thousand that come back at once take turns."""


class Sink(Protocol):
    """Somebody who is told of changes."""

    def take(self, changes: Sequence[Change]) -> None:
        """Called for every batch, in order. Must not wait."""
        ...


class FeedHub:
    """Reads the feed while there is anybody to tell, and hands every change to all sinks.

    A loop of the API process: the runner counts a failed read and repeats it after a pause. Nothing is lost by
    that: reading goes on where it stopped, and a feed that lost its past begins with a reset.

    Args:
        feed: the feed.
        block_s: how long one read waits for something new.
    """

    name = "feed"
    pause_s = 0.0

    def __init__(self, feed: ChangeFeed, *, block_s: float = 1.0) -> None:
        self._feed = feed
        self._block_s = block_s
        self._sinks: set[Sink] = set()
        self._joined = asyncio.Event()
        self._position: StreamId | None = None
        self._locating = asyncio.Lock()
        self._replaying = asyncio.Semaphore(_REPLAYS)
        self._reaching: dict[asyncio.Future[None], StreamId] = {}
        self._live = False

    @property
    def position(self) -> StreamId | None:
        """Up to where the sinks were given everything; None while there are none."""
        return self._position

    @property
    def live(self) -> bool:
        """Whether the last read succeeded: changes reach the sinks as they happen."""
        return self._live and self._position is not None

    async def join(self, sink: Sink) -> StreamId:
        """From the version that is returned on, the sink is given every change.

        Raises:
            IndexUnavailableError: nobody can say from where; the sink has not joined.
        """
        async with self._locating:
            if self._position is None:
                self._position = await self._feed.newest()
        self._sinks.add(sink)
        self._joined.set()
        return self._position

    async def reach(self, version: StreamId) -> StreamId:
        """For a sink that has joined: returns from where on it is given every change, once that is the version.

        Another process may have told of it before this one has read so far. A version that the feed has not come
        to is one of a feed that is lost; then nobody waits.

        Raises:
            IndexUnavailableError: nobody can say, or this process does not get so far.
        """
        if self._reached(version) or version > await self._feed.newest():
            return self._position or StreamId(0)
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reaching[reached] = version
        try:
            async with asyncio.timeout(_REACH_S):
                await reached
        except TimeoutError:
            raise IndexUnavailableError("The change feed is not read as far as that") from None
        finally:
            del self._reaching[reached]
        return self._position or StreamId(0)

    async def want_memory(self, amounts_gb: Sequence[float]) -> None:
        """As `ChangeFeed.want_memory`. Raises IndexUnavailableError."""
        await self._feed.want_memory(amounts_gb)

    def _reached(self, version: StreamId) -> bool:
        return self._position is not None and self._position >= version

    def leave(self, sink: Sink) -> None:
        self._sinks.discard(sink)
        if not self._sinks:
            self._joined.clear()
            self._position = None

    async def replay(self, after: StreamId, until: StreamId) -> AsyncIterator[list[Change]]:
        """What lies between two versions, in batches, for somebody who joined at `until`.

        Raises:
            IndexUnavailableError: Redis went away meanwhile.
        """
        while after < until:
            async with self._replaying:
                changes = await self._feed.read(after, block_s=0.0)
            past = [change for change in changes if change.version <= until]
            if past:
                yield past
            if not changes or len(past) < len(changes):
                return
            after = changes[-1].version

    async def run_once(self) -> None:
        start = self._position
        if start is None or not self._sinks:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._joined.wait(), _IDLE_S)
            return
        try:
            changes = await self._feed.read(start, block_s=self._block_s)
        except Exception:
            # Whatever it is, waiters must not rely on being told. Raised again: the runner logs and counts it.
            if self._live:
                log.warning("The change feed cannot be read: waiters look now and then until it can")
            self._live = False
            FEED_BEHIND.set(1)
            raise
        if not self._live:
            log.info("The change feed is read")
        self._live = True
        FEED_BEHIND.set(0)
        # Everybody left while we were reading, and somebody may have joined at another version since.
        if self._position is start:
            self._hand_on(changes, start)

    def _hand_on(self, changes: list[Change], start: StreamId) -> None:
        # A feed that is empty since a loss says so with every read.
        if changes and changes[0].kind is ChangeKind.RESET and changes[0].version == start:
            changes = changes[1:]
        if not changes:
            return
        self._position = changes[-1].version
        FEED_CHANGES.inc(len(changes))
        for sink in tuple(self._sinks):
            sink.take(changes)
        for reached, version in self._reaching.items():
            if version <= self._position and not reached.done():
                reached.set_result(None)
