"""Those who listen to changes: equal filters share the work, and whoever does not keep up is let go."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from app.errors import TooManyWaitingError
from app.models.change import Change, ChangeKind, EventFilter
from app.models.identity import StreamId
from app.service.feed import FeedHub
from app.telemetry import LISTENERS, LISTENERS_DROPPED

MAX_BUFFER_BYTES: Final = 1024 * 1024
MAX_BUFFERS_BYTES: Final = 64 * 1024 * 1024

Encode = Callable[[Change], bytes]

_Place = tuple[str | None, str | None, ChangeKind]
"""Type, pool and kind that a filter wants; None: any."""


class _Chunk:
    """What listeners with one filter are given at once; it is in memory once, however many hold it."""

    __slots__ = ("data", "holders")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.holders = 0


class Buffers:
    """What all listeners together have left unread."""

    def __init__(self) -> None:
        self.size = 0

    def hold(self, chunk: _Chunk) -> None:
        chunk.holders += 1
        if chunk.holders == 1:
            self.size += len(chunk.data)

    def release(self, chunk: _Chunk) -> None:
        chunk.holders -= 1
        if not chunk.holders:
            self.size -= len(chunk.data)


class Listener:
    """One listener's bounded buffer. `lost` is set once it has overflowed; nothing is kept from then on."""

    def __init__(self, buffers: Buffers, most_bytes: int) -> None:
        self.lost = asyncio.Event()
        self.unread = 0
        self._buffers = buffers
        self._most_bytes = most_bytes
        self._chunks: deque[_Chunk] = deque()
        self._sent: _Chunk | None = None
        self._filled = asyncio.Event()

    def give(self, chunk: _Chunk) -> bool:
        """Returns whether there was room."""
        if self.lost.is_set():
            return True
        if self.unread + len(chunk.data) > self._most_bytes:
            self.drop()
            return False
        self.unread += len(chunk.data)
        self._buffers.hold(chunk)
        self._chunks.append(chunk)
        self._filled.set()
        return True

    async def next(self) -> bytes:
        """The oldest that is unread. It counts as unread until the call after."""
        self._let_go_of_sent()
        await self._filled.wait()
        self._sent = self._chunks.popleft()
        if not self._chunks:
            self._filled.clear()
        return self._sent.data

    def drop(self) -> None:
        self.lost.set()
        self.clear()

    def clear(self) -> None:
        self._let_go_of_sent()
        while self._chunks:
            self._buffers.release(self._chunks.popleft())
        self._filled.clear()
        self.unread = 0

    def _let_go_of_sent(self) -> None:
        if self._sent is not None:
            self._buffers.release(self._sent)
            self.unread -= len(self._sent.data)
            self._sent = None


class Audience:
    """All listeners of a process, on one membership of the hub.

    A change costs work only for the filters that want it: they are found by its type, pool and kind.

    Args:
        hub: tells of changes.
        encode: a change as listeners get it; called once per change, however many they are.
        most: listeners at a time; more are refused.
        most_bytes: what a listener may leave unread.
        most_bytes_in_all: what all may leave unread; past it those with most of it are let go.
    """

    def __init__(
        self,
        hub: FeedHub,
        encode: Encode,
        *,
        most: int = 5_000,
        most_bytes: int = MAX_BUFFER_BYTES,
        most_bytes_in_all: int = MAX_BUFFERS_BYTES,
    ) -> None:
        self._hub = hub
        self._encode = encode
        self._most = most
        self._most_bytes = most_bytes
        self._most_bytes_in_all = most_bytes_in_all
        self._buffers = Buffers()
        self._listeners: dict[EventFilter, set[Listener]] = {}
        self._wanting: dict[_Place, dict[EventFilter, None]] = {}
        self._count = 0

    async def join(self, wanted: EventFilter, *, after: StreamId | None = None) -> tuple[Listener, StreamId]:
        """The listener gets everything after the version that is returned.

        Args:
            wanted: what it is told of.
            after: what it already has; unless the feed has lost it, what is returned is no earlier.

        Raises:
            TooManyWaitingError: no more may listen here.
            IndexUnavailableError: nobody can say from where.
        """
        if self._count >= self._most:
            raise TooManyWaitingError
        self._count += 1
        try:
            position = await self._hub.join(self)
            if after is not None and after > position:
                position = await self._hub.reach(after)
        except BaseException:
            self._uncount()
            raise
        listener = Listener(self._buffers, self._most_bytes)
        if wanted not in self._listeners:
            self._listeners[wanted] = set()
            for place in _places(wanted):
                self._wanting.setdefault(place, {})[wanted] = None
        self._listeners[wanted].add(listener)
        LISTENERS.set(self._count)
        return listener, position

    def leave(self, wanted: EventFilter, listener: Listener) -> None:
        listener.clear()
        self._listeners[wanted].discard(listener)
        if not self._listeners[wanted]:
            del self._listeners[wanted]
            for place in _places(wanted):
                del self._wanting[place][wanted]
                if not self._wanting[place]:
                    del self._wanting[place]
        self._uncount()
        LISTENERS.set(self._count)

    def take(self, changes: Sequence[Change]) -> None:
        chunks: dict[EventFilter, list[bytes]] = {}
        for change in changes:
            encoded = None
            for wanted in self._who_want(change):
                encoded = encoded or self._encode(change)
                chunks.setdefault(wanted, []).append(encoded)
        for wanted, parts in chunks.items():
            chunk = _Chunk(b"".join(parts))
            for listener in self._listeners[wanted]:
                if not listener.give(chunk):
                    LISTENERS_DROPPED.inc()
        if self._buffers.size > self._most_bytes_in_all:
            self._drop_the_slowest()

    def _who_want(self, change: Change) -> Iterable[EventFilter]:
        if change.agent_id is None:
            return [wanted for wanted in self._listeners if wanted.wants(change)]
        return [
            wanted
            for agent_type in (None, change.agent_type)
            for pool_name in (None, change.pool_name)
            for wanted in self._wanting.get((agent_type, pool_name, change.kind), ())
        ]

    def _drop_the_slowest(self) -> None:
        everybody = [listener for listeners in self._listeners.values() for listener in listeners]
        for listener in sorted(everybody, key=lambda one: one.unread, reverse=True):
            if self._buffers.size <= self._most_bytes_in_all // 2:
                return
            listener.drop()
            LISTENERS_DROPPED.inc()

    def _uncount(self) -> None:
        self._count -= 1
        if not self._count:
            self._hub.leave(self)


def _places(wanted: EventFilter) -> list[_Place]:
    kinds = ChangeKind if wanted.kinds is None else wanted.kinds
    return [(wanted.agent_type, wanted.pool_name, kind) for kind in kinds]
