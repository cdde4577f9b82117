"""Sessions of other programs in the same Postgres: they lock, they collide, they take every connection."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

import asyncpg

from tests.servers import PostgresServer
from tests.waiting import PATIENCE_S

T = TypeVar("T")


class Sessions:
    """Any number of sessions, used from any thread; leaving the context ends them and rolls back."""

    def __init__(self, postgres: PostgresServer) -> None:
        self._url = postgres.url.replace("postgresql+asyncpg", "postgresql")
        self._open: list[asyncpg.Connection[asyncpg.Record]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sessions", daemon=True)
        self._thread.start()

    def open(self) -> int:
        """Begins a session and returns its number."""
        self._open.append(self._call(asyncpg.connect(self._url, timeout=PATIENCE_S)))
        return len(self._open) - 1

    def take_all(self) -> int:
        """Opens sessions until Postgres has no more, and returns how many there are."""
        while True:
            try:
                self.open()
            except asyncpg.TooManyConnectionsError:
                return len(self._open)

    def pid(self, session: int) -> int:
        """Of the process that serves it."""
        return int(self._open[session].get_server_pid())

    def run(self, session: int, statement: str) -> None:
        self._call(self._open[session].execute(statement))

    def begin(self, session: int, statement: str) -> Future[str]:
        """Runs what may have to wait."""
        return asyncio.run_coroutine_threadsafe(self._open[session].execute(statement), self._loop)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in self._open:
            self._call(connection.close(timeout=PATIENCE_S))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)
