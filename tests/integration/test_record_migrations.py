"""The schema: migrations and tables say the same, and nobody works on another revision."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect, text

from app.errors import RecordUnavailableError, StartupRefusedError
from app.record import Record, is_migrated, migrate, open_record
from app.record.migrate import _config, newest_revision
from app.record.tables import metadata
from app.settings import Settings
from tests.servers import free_port


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'missing' / 'new.db'}"
    url: str = request.getfixturevalue("database_url")
    return url


async def test_migrating_makes_what_is_missing_and_may_be_repeated(empty_url: str) -> None:
    await migrate(empty_url)
    assert await is_migrated(empty_url)
    await migrate(empty_url)
    assert await is_migrated(empty_url)


async def test_processes_that_start_together_migrate_one_after_the_other(empty_url: str) -> None:
    await asyncio.gather(*(migrate(empty_url) for _ in range(3)))
    assert await is_migrated(empty_url)


async def test_models_and_migrated_schema_do_not_differ(record: Record) -> None:
    def differences(connection: Connection) -> list[Any]:
        options = {"compare_type": True, "compare_server_default": True}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))

    async with record.database.reading() as connection:
        assert await connection.run_sync(differences) == []


async def test_names_of_constraints_and_indexes_are_those_of_the_models(record: Record) -> None:
    """compare_metadata does not look at the names of primary keys, nor at partial indexes' conditions."""

    def names(connection: Connection) -> dict[str, tuple[object, set[object]]]:
        inspector = inspect(connection)
        return {
            table: (
                inspector.get_pk_constraint(table)["name"],
                {index["name"] for index in inspector.get_indexes(table)},
            )
            for table in metadata.tables
        }

    async with record.database.reading() as connection:
        found = await connection.run_sync(names)
    assert found == {
        name: (table.primary_key.name, {index.name for index in table.indexes})
        for name, table in metadata.tables.items()
    }


async def test_a_downgrade_leaves_nothing_behind(record: Record) -> None:
    def downgrade(connection: Connection) -> list[str]:
        config = _config()
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        return inspect(connection).get_table_names()

    async with record.database.writing() as connection:
        assert await connection.run_sync(downgrade) == ["alembic_version"]


async def test_an_absent_schema_refuses_the_start(empty_url: str) -> None:
    if empty_url.startswith("sqlite"):
        Path(empty_url.removeprefix("sqlite+aiosqlite:///")).parent.mkdir()
    record = open_record(Settings(database_url=empty_url))
    with pytest.raises(StartupRefusedError, match=r"revision none.*headroom migrate"):
        await record.require_migrated()
    await record.close()


async def test_a_newer_schema_refuses_the_start(record: Record) -> None:
    await record.require_migrated()
    async with record.database.writing() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StartupRefusedError, match=f"9999, this build needs {newest_revision()}"):
        await record.require_migrated()


@pytest.mark.parametrize(
    "url", ["sqlite+aiosqlite:////nowhere/at/all.db", "postgresql+asyncpg://u@127.0.0.1:{port}/x"]
)
async def test_a_database_that_is_away_is_no_old_schema(url: str) -> None:
    record = open_record(Settings(database_url=url.format(port=free_port())))
    with pytest.raises(RecordUnavailableError):
        await record.require_migrated()
    await record.close()
