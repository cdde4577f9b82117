"""Those who listen to changes: equal filters share the work, and whoever does not keep up is let go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from app.errors import TooManyWaitingError
from app.models.change import Change, EventFilter
from app.models.identity import StreamId
from app.service.feed import FeedHub
from app.telemetry import LISTENERS, LISTENERS_DROPPED

MAX_BUFFER_BYTES: Final = 1024 * 1024

Encode = Callable[[Change], bytes]


class Listener:
    """One listener's bounded buffer. `lost` is set once it has overflowed; nothing is kept from then on."""

    def __init__(self, most_bytes: int) -> None:
        self.lost = asyncio.Event()
        self._most_bytes = most_bytes
        self._chunks: list[bytes] = []
        self._size = 0
        self._filled = asyncio.Event()

    def give(self, chunk: bytes) -> bool:
        """Returns whether there was room."""
        if self.lost.is_set():
            return True
        self._size += len(chunk)
        if self._size > self._most_bytes:
            self._chunks.clear()
            self.lost.set()
            return False
        self._chunks.append(chunk)
        self._filled.set()
        return True

    async def next(self) -> bytes:
        """Everything that has come since the call before."""
        await self._filled.wait()
        chunk = b"".join(self._chunks)
        self._chunks.clear()
        self._size = 0
        self._filled.clear()
        return chunk


class Audience:
    """All listeners of a process, on one membership of the hub.

    Args:
        hub: tells of changes.
        encode: a change as listeners get it; called once per change, however many they are.
        most: listeners at a time; more are refused.
        most_bytes: what a listener may leave unread.
    """

    def __init__(
        self, hub: FeedHub, encode: Encode, *, most: int = 5_000, most_bytes: int = MAX_BUFFER_BYTES
    ) -> None:
        self._hub = hub
        self._encode = encode
        self._most = most
        self._most_bytes = most_bytes
        self._listeners: dict[EventFilter, set[Listener]] = {}
        self._count = 0

    async def join(self, wanted: EventFilter) -> tuple[Listener, StreamId]:
        """The listener gets everything after the version that is returned.

        Raises:
            TooManyWaitingError: no more may listen here.
            IndexUnavailableError: nobody can say from where.
        """
        if self._count >= self._most:
            raise TooManyWaitingError
        self._count += 1
        try:
            position = await self._hub.join(self)
        except BaseException:
            self._count -= 1
            raise
        listener = Listener(self._most_bytes)
        self._listeners.setdefault(wanted, set()).add(listener)
        LISTENERS.set(self._count)
        return listener, position

    def leave(self, wanted: EventFilter, listener: Listener) -> None:
        self._listeners[wanted].discard(listener)
        if not self._listeners[wanted]:
            del self._listeners[wanted]
        self._count -= 1
        LISTENERS.set(self._count)
        if not self._count:
            self._hub.leave(self)

    def take(self, changes: Sequence[Change]) -> None:
        encoded: dict[StreamId, bytes] = {}
        for wanted, listeners in self._listeners.items():
            chunk = b"".join(
                encoded.get(change.version) or encoded.setdefault(change.version, self._encode(change))
                for change in changes
                if wanted.wants(change)
            )
            if chunk:
                for listener in listeners:
                    if not listener.give(chunk):
                        LISTENERS_DROPPED.inc()
