"""Brings the record's schema to the newest revision, and tells whether it is there."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, make_url, text

from app.errors import StartupRefusedError
from app.record.connect import Database, open_engine

_TIMEOUT_S: Final = 300.0
"""A migration may rewrite a large table; the timeouts of the request path would stop it halfway."""

_LOCK_KEY: Final = 0x4865_6164_726F_6F6D
"""Postgres advisory lock ("Headroom" in ASCII): two processes that start together migrate one after the other."""


async def migrate(url: str) -> None:
    """Upgrades to the newest revision, if need be; creates a SQLite file that is missing.

    Args:
        url: SQLAlchemy URL with its async driver, as `Settings.record_url`.

    Raises:
        RecordUnavailableError: the database is away.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    database = Database(open_engine(url, timeout_s=_TIMEOUT_S, pool_size=1), timeout_s=_TIMEOUT_S)
    try:
        async with database.writing() as connection:
            if database.is_postgres:
                await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
            await connection.run_sync(_upgrade)
    finally:
        await database.close()


async def require_migrated(database: Database) -> None:
    """Refuses to work on a schema that this build does not know.

    Raises:
        StartupRefusedError: the schema is older or newer than this build, or absent.
        RecordUnavailableError: the database is away, so nothing is known.
    """
    async with database.reading() as connection:
        present = await connection.run_sync(_revision)
    wanted = newest_revision()
    if present != wanted:
        raise StartupRefusedError(
            f"The record's schema is at revision {present or 'none'}, this build needs {wanted}: "
            "run `headroom migrate`"
        )


async def is_migrated(url: str) -> bool:
    """Whether the schema is at this build's revision. Raises RecordUnavailableError when the database is away."""
    database = Database(open_engine(url, timeout_s=5.0, pool_size=1), timeout_s=5.0)
    try:
        async with database.reading() as connection:
            return await connection.run_sync(_revision) == newest_revision()
    finally:
        await database.close()


def newest_revision() -> str | None:
    return ScriptDirectory.from_config(_config()).get_current_head()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "app.record:migrations")
    return config


def _upgrade(connection: Connection) -> None:
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()
