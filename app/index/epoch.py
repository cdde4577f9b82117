"""Whether the index may be trusted: the epoch, bound to the run of the server that held it when it was opened.

A server that restarted, failed over or was flushed either has no epoch or one with another run id. Lookups then
come from the record until a rebuild opens a new epoch.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
import redis.asyncio as aredis

from app.errors import IndexRebuildingError
from app.index.connect import server_run_id
from app.index.keys import LAYOUT, Keys


class Epoch(msgspec.Struct, frozen=True):
    """An epoch as it stands in Redis: when it was opened, the layout of the keys, the server's run id."""

    opened_ms: int
    layout: str
    run_id: str

    @classmethod
    def parse(cls, text: str) -> Epoch | None:
        parts = text.split(" ")
        if len(parts) != 3 or not parts[0].isdigit():
            return None
        return cls(int(parts[0]), parts[1], parts[2])

    def __str__(self) -> str:
        return f"{self.opened_ms} {self.layout} {self.run_id}"


class OtherServerError(IndexRebuildingError):
    """The epoch was opened on another run of a server, perhaps one that has taken this one's place."""


def trusted_epoch(text: bytes, run_id: str) -> str:
    """The epoch as found in Redis. Raises IndexRebuildingError when that run of the server may not be trusted."""
    found = Epoch.parse(text.decode("ascii", "replace"))
    if found is None or found.layout != LAYOUT:
        raise IndexRebuildingError
    if found.run_id != run_id:
        raise OtherServerError
    return str(found)


class EpochGuard:
    """Remembers which epoch to trust, so that a lookup needs no extra round trip to check it."""

    def __init__(
        self,
        client: aredis.Redis,
        keys: Keys,
        *,
        read_run_id: Callable[[aredis.Redis], Awaitable[str]] = server_run_id,
    ) -> None:
        self._client = client
        self._keys = keys
        self._read_run_id = read_run_id
        self._run_id: str | None = None
        self._trusted: str | None = None

    def reconnected(self) -> None:
        """A new connection may lead to another server, or to the same one restarted: look again."""
        self._run_id = None
        self._trusted = None

    async def run_id(self) -> str:
        # Connecting clears the cached id, so the answer of a call that connects is stored after it.
        if self._run_id is None:
            self._run_id = await self._read_run_id(self._client)
        return self._run_id

    async def trusted(self) -> str:
        """The epoch that lookups pass along. Raises IndexRebuildingError while there is none to trust."""
        if self._trusted is None:
            value: bytes | None = await self._client.get(self._keys.epoch)  # type: ignore[assignment]  # not decoded
            await self.learn(value or b"")
        if self._trusted is None:
            raise IndexRebuildingError
        return self._trusted

    async def learn(self, text: bytes) -> None:
        """Takes note of the epoch found in Redis. Raises IndexRebuildingError when it may not be trusted."""
        self._trusted = None
        try:
            self._trusted = trusted_epoch(text, await self.run_id())
        except IndexRebuildingError:
            if text:
                # Somebody may have opened it elsewhere: idle connections may lead to a server that was replaced.
                await self._client.connection_pool.disconnect(inuse_connections=False)
            raise

    async def current(self) -> Epoch | None:
        """Reads the epoch anew; None when a rebuild is due."""
        self.reconnected()
        try:
            return Epoch.parse(await self.trusted())
        except IndexRebuildingError:
            return None
