"""A byte proxy between a process and its server that delays, holds, cuts and drops, in either direction."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

from tests.waiting import PATIENCE_S

T = TypeVar("T")

_CHUNK = 65_536


@dataclass(eq=False)
class _Link:
    """One connection through the proxy.

    Attributes:
        doomed: its next reply is swallowed and the connection cut.
        forgotten: all that is sent on it is swallowed.
    """

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    doomed: bool = False
    forgotten: bool = False
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def cut(self) -> None:
        for writer in (self.client, self.server):
            if not writer.is_closing():
                writer.transport.abort()


class Proxy:
    """Listens on a loopback port of its own and passes bytes on to `target`.

    It runs in a thread with an event loop of its own; everything here may be used from any thread. `port` is where
    processes connect to instead of the server's.

    Attributes:
        target: the port behind; new connections go to the present one.
        request_delay_s: how long each chunk towards the server waits.
        reply_delay_s: how long each chunk towards the client waits.
        refusing: whether new connections are cut at once.
        lost: how many replies or requests were dropped.
        under_way: chunks that are being delayed or held right now.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.request_delay_s = 0.0
        self.reply_delay_s = 0.0
        self.refusing = False
        self.lost = 0
        self.under_way = 0
        self._lose_reply: tuple[bytes, int] = (b"", 0)
        self._lose_request: tuple[bytes, int] = (b"", 0)
        self._links: set[_Link] = set()
        self._loop = asyncio.new_event_loop()
        self._open = asyncio.Event()
        self._open.set()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._call(self._listen())

    @property
    def connections(self) -> int:
        return len(self._links)

    def lose_replies_to(self, request: bytes, *, times: int) -> None:
        """The server gets and answers the next requests that contain these bytes; the answer is lost, with it the
        connection.
        """
        self._lose_reply = (request, times)

    def lose_requests(self, request: bytes, *, times: int) -> None:
        """The next requests that contain these bytes never arrive, and their connection is cut."""
        self._lose_request = (request, times)

    def hold(self) -> None:
        """Bytes stop moving in both directions; nothing is lost and nobody is told."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def release(self) -> None:
        self._loop.call_soon_threadsafe(self._open.set)

    def forget(self) -> None:
        """As a firewall that restarts: what is sent on present connections goes nowhere, and nobody is told."""
        for link in list(self._links):
            link.forgotten = True

    def cut(self) -> None:
        """Resets every connection there is."""
        self._call(self._cut())

    def close(self) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        self._open.set()
        await self._cut()
        serving = asyncio.all_tasks() - {asyncio.current_task()}
        if serving:
            await asyncio.wait(serving, timeout=5)
        # Transports close in a later turn of the loop.
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def _cut(self) -> None:
        for link in list(self._links):
            link.cut()

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        if self.refusing:
            to_client.transport.abort()
            return
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            to_client.transport.abort()
            return
        link = _Link(to_client, to_server)
        link.tasks = [
            asyncio.create_task(self._carry_requests(link, from_client)),
            asyncio.create_task(self._carry_replies(link, from_server)),
        ]
        self._links.add(link)
        try:
            await asyncio.wait(link.tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._links.discard(link)
            for writer in (to_client, to_server):
                writer.close()
            for task in link.tasks:
                task.cancel()
            await asyncio.gather(*link.tasks, return_exceptions=True)

    async def _carry_requests(self, link: _Link, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(_CHUNK):
                if self._matches("_lose_request", chunk):
                    link.cut()
                    return
                if link.forgotten:
                    continue
                link.doomed = link.doomed or self._matches("_lose_reply", chunk)
                await self._pass_on(link.server, chunk, self.request_delay_s)

    async def _carry_replies(self, link: _Link, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(_CHUNK):
                if link.doomed:
                    link.cut()
                    return
                await self._pass_on(link.client, chunk, self.reply_delay_s)

    async def _pass_on(self, writer: asyncio.StreamWriter, chunk: bytes, delay_s: float) -> None:
        self.under_way += 1
        try:
            if delay_s:
                await asyncio.sleep(delay_s)
            await self._open.wait()
        finally:
            self.under_way -= 1
        writer.write(chunk)
        await writer.drain()

    def _matches(self, wish: str, chunk: bytes) -> bool:
        pattern, times = getattr(self, wish)
        if not times or pattern not in chunk:
            return False
        setattr(self, wish, (pattern, times - 1))
        self.lost += 1
        return True
