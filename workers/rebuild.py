"""Rebuild: record -> index, whenever Redis came back empty, older, failed over, or with another layout."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from app.errors import IndexUnavailableError
from app.telemetry import REBUILD_SECONDS, REBUILDS, logger

if TYPE_CHECKING:
    from app.index.upkeep import Upkeep
    from app.models.agent import RecordedState
    from app.service.ports import RecordReader

_LEASE_S: Final = 10.0
_RENEW_EVERY_S: Final = 3.0
_READ: Final = 500
"""So many agents at a time are decoded: Redis has enough to do for as long as that takes."""

_PAGE: Final = 5_000
"""So many are put in together, neighbours in the sets one after another."""

_PAGES_UNDER_WAY: Final = 2

_log = logger(__name__)


class Rebuild:
    """One round: look whether the index may be trusted; if not, make it from the record and open an epoch.

    Heartbeats are applied meanwhile; the order guard keeps whatever is fresher.
    """

    name = "rebuild"
    pause_s = 0.5

    def __init__(self, upkeep: Upkeep, record: RecordReader, holder: str) -> None:
        self._upkeep = upkeep
        self._record = record
        self._holder = holder
        self._published = False

    async def run_once(self) -> None:
        if not self._published:
            # The index of another version, or of other settings, may be whole.
            await self._upkeep.publish()
            self._published = True
        if await self._upkeep.current_epoch() is None and await self._lease():
            await self.rebuild()

    async def rebuild(self) -> bool:
        """Returns whether an epoch could be opened; False when Redis was flushed again meanwhile, or when another
        worker has begun as well.
        """
        async with self._lease_kept() as renewing:
            return await self._rebuild(renewing)

    async def _rebuild(self, renewing: asyncio.Task[None]) -> bool:
        _log.info("Rebuilding the index from the record")
        started = time.monotonic()
        marker = secrets.token_hex(8)
        await self._upkeep.begin_rebuild(marker, await self._record.greatest_position())
        restored = await self._restore_all(renewing)
        if renewing.done():
            _log.warning("Another worker rebuilds the index; leaving it to that one")
            return False
        opened = await self._upkeep.open_epoch(marker)
        took_s = time.monotonic() - started
        if opened:
            REBUILDS.inc()
            REBUILD_SECONDS.set(took_s)
            _log.info("The index is rebuilt", agents=restored, seconds=round(took_s, 2))
        else:
            _log.warning("Redis lost its data during the rebuild; beginning again")
        return opened

    async def _restore_all(self, renewing: asyncio.Task[None]) -> int:
        """One page is read and prepared while Redis still works on those before: neither waits for the other."""
        restored = 0
        under_way: set[asyncio.Task[int]] = set()
        try:
            async for page in self._pages():
                if len(under_way) == _PAGES_UNDER_WAY:
                    done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                    restored += sum(await asyncio.gather(*done))
                if renewing.done():
                    break
                under_way.add(asyncio.create_task(self._upkeep.restore(page, alone=True)))
            return restored + sum(await asyncio.gather(*under_way))
        finally:
            for task in under_way:
                task.cancel()
            # Several end with the same error, and the next attempt must not meet them.
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _pages(self) -> AsyncIterator[list[RecordedState]]:
        page: list[RecordedState] = []
        async for states in self._record.states(page_size=_READ):
            page += states
            if len(page) >= _PAGE:
                yield page
                page = []
        if page:
            yield page

    @asynccontextmanager
    async def _lease_kept(self) -> AsyncIterator[asyncio.Task[None]]:
        """Renews the lease, however long a page takes, until this ends; the task is done when it was lost."""
        renewing = asyncio.create_task(self._renew())
        try:
            yield renewing
        finally:
            renewing.cancel()
            await asyncio.wait([renewing])
            if not renewing.cancelled():
                renewing.result()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_EVERY_S)
            try:
                if not await self._lease():
                    return
            except IndexUnavailableError as error:
                # The rebuild meets the same, and ends with it if it lasts.
                _log.debug("Could not renew the lease", reason=str(error))

    async def _lease(self) -> bool:
        return await self._upkeep.lease(self.name, self._holder, ttl_s=_LEASE_S)
