"""Connections to the record: pool, timeouts, SQLite's pragmas, transactions."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from sqlalchemy import Connection, event, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from app.record.failures import translated
from app.service.ports import RecordSession
from app.settings import Settings

_WRITES: Final = "headroom_writes"
_WRITE_DEADLINE_FACTOR: Final = 6
"""A batch is a handful of statements, each of which may take as long as a whole read."""


class Database:
    """An engine and the two kinds of transaction that the record uses."""

    def __init__(self, engine: AsyncEngine, *, timeout_s: float) -> None:
        self._engine = engine
        self._writer = engine.execution_options(**{_WRITES: True})
        self._timeout_s = timeout_s
        self.is_postgres = engine.dialect.name == "postgresql"

    @asynccontextmanager
    async def reading(self, lent: RecordSession | None = None) -> AsyncIterator[AsyncConnection]:
        """One transaction to read in: that of the lent session, else one of our own.

        Raises:
            RecordUnavailableError: away, or no answer within the timeout.
        """
        with translated():
            async with asyncio.timeout(self._timeout_s):
                if isinstance(lent, AsyncSession):
                    yield await lent.connection()
                elif isinstance(lent, AsyncConnection):
                    yield lent
                elif lent is None:
                    async with self._engine.connect() as connection:
                        yield connection
                else:
                    raise TypeError("session must be an AsyncSession or an AsyncConnection of SQLAlchemy")

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """One transaction to write in, committed at the end.

        Raises:
            RecordUnavailableError: as `reading`.
        """
        with translated():
            async with self.colliding() as connection:
                yield connection

    @asynccontextmanager
    async def colliding(self) -> AsyncIterator[AsyncConnection]:
        """As `writing`, with the drivers' errors as they are, for a caller that tells them apart."""
        async with asyncio.timeout(self._timeout_s * _WRITE_DEADLINE_FACTOR), self._writer.begin() as connection:
            yield connection

    async def close(self) -> None:
        await self._engine.dispose()
        if not self.is_postgres:
            # aiosqlite does not wait for the thread of a connection that failed; that thread would find the
            # event loop closed and print a traceback.
            await asyncio.sleep(0.01)


def open_database(settings: Settings) -> Database:
    """Opens no connection yet."""
    return Database(
        open_engine(
            settings.record_url, timeout_s=settings.database_timeout_s, pool_size=settings.database_pool_size
        ),
        timeout_s=settings.database_timeout_s,
    )


def open_engine(url: str, *, timeout_s: float, pool_size: int) -> AsyncEngine:
    sqlite = make_url(url).get_backend_name() == "sqlite"
    engine = create_async_engine(
        url,
        poolclass=AsyncAdaptedQueuePool,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=timeout_s,
        # A connection that died in the pool is replaced here instead of failing a call.
        pool_pre_ping=True,
        # Values of the batch stay out of logs and tracebacks.
        hide_parameters=True,
        connect_args=_sqlite_arguments(timeout_s) if sqlite else _postgres_arguments(timeout_s),
    )
    if sqlite:
        _prepare_sqlite(engine, timeout_s)
    return engine


def _postgres_arguments(timeout_s: float) -> dict[str, Any]:
    timeout_ms = str(max(1, round(timeout_s * 1000)))
    return {
        "timeout": timeout_s,
        "command_timeout": timeout_s,
        "server_settings": {
            "application_name": "headroom",
            # The server's own timeouts end what a client that died has left running.
            "statement_timeout": timeout_ms,
            "lock_timeout": timeout_ms,
            "idle_in_transaction_session_timeout": str(round(timeout_s * 1000) * _WRITE_DEADLINE_FACTOR),
            "jit": "off",
            "timezone": "UTC",
        },
    }


def _sqlite_arguments(timeout_s: float) -> dict[str, Any]:
    # isolation_level None: the driver begins nothing by itself, the "begin" event below does.
    return {"timeout": timeout_s, "isolation_level": None}


def _prepare_sqlite(engine: AsyncEngine, timeout_s: float) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def set_pragmas(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {round(timeout_s * 1000)}")
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            # SQLite does not wait here. Another process is making the file, and it sets the mode for all.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
        # FULL: what the recorder acknowledges is gone from the log, so its commit must survive a power cut.
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        # A writer that starts as a reader could not wait for its lock: SQLite answers BUSY at once then.
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
