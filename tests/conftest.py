"""Fixtures with real servers. One Valkey and one Postgres serve the whole run; each test gets them empty.

A test that breaks, stops or reconfigures a server starts one of its own with `tests.servers`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from app.settings import Settings
from tests.servers import PostgresServer, ValkeyServer, start_postgres, start_valkey


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the person's environment nor a `.env` file may change what the tests see."""
    for name in [name for name in os.environ if name.startswith("HEADROOM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setitem(Settings.model_config, "env_file", None)


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[ValkeyServer]:
    with start_valkey() as server:
        yield server


@pytest.fixture(scope="session")
def valkey_url(valkey_server: ValkeyServer) -> str:
    """The shared Valkey, as the tests before left it."""
    return valkey_server.url


@pytest.fixture
def redis_url(valkey_server: ValkeyServer) -> str:
    """The shared Valkey, emptied for this test."""
    valkey_server.flush()
    return valkey_server.url


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with start_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_url(postgres_server: PostgresServer) -> str:
    """The shared Postgres' own database `postgres`."""
    return postgres_server.url


@pytest.fixture
def database_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A fresh, empty database of the shared Postgres, for this test alone."""
    name = postgres_server.create_database()
    yield postgres_server.database_url(name)
    postgres_server.drop_database(name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Browser tests come last: Playwright's event loop goes on in this thread, and asyncio allows only one."""
    items.sort(key=lambda item: "browser" in item.path.parts)
