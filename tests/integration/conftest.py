"""Records with their schema in place: each test gets an empty one, on SQLite and on Postgres."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from app.record import Record, migrate, open_record
from app.settings import Settings
from tests.servers import PostgresServer


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("record") / "migrated.db"
    asyncio.run(migrate(f"sqlite+aiosqlite:///{path}"))
    return path


@pytest.fixture(scope="session")
def migrated_database(postgres_server: PostgresServer) -> str:
    """Name of a database that others are copied from: a copy takes less than a migration."""
    name = postgres_server.create_database()
    asyncio.run(migrate(postgres_server.database_url(name)))
    return name


@pytest.fixture(params=["sqlite", "postgres"])
def record_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A migrated, empty record of the test's own."""
    wanted = {"sqlite": "sqlite_record_url", "postgres": "postgres_record_url"}[request.param]
    url: str = request.getfixturevalue(wanted)
    return url


@pytest.fixture
def sqlite_record_url(migrated_file: Path, tmp_path: Path) -> str:
    path = shutil.copy(migrated_file, tmp_path / "record.db")
    return f"sqlite+aiosqlite:///{path}"


@pytest.fixture
def postgres_record_url(postgres_server: PostgresServer, migrated_database: str) -> Iterator[str]:
    name = postgres_server.create_database(template=migrated_database)
    yield postgres_server.database_url(name)
    postgres_server.drop_database(name)


OpenRecord = Callable[..., Record]


@pytest.fixture
async def open_another(record_url: str) -> AsyncIterator[OpenRecord]:
    """Opens further records on the same database, as other processes would, with settings of their own."""
    opened: list[Record] = []

    def open_it(**settings: object) -> Record:
        opened.append(open_record(Settings.model_validate({"database_url": record_url, **settings})))
        return opened[-1]

    yield open_it
    for record in opened:
        await record.close()


@pytest.fixture
def record(open_another: OpenRecord) -> Record:
    return open_another()
