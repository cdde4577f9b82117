"""The real stack behind a real server: Valkey, SQLite, uvicorn."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from app.index.opening import open_index
from app.main import create_app
from app.record import migrate
from app.settings import Settings
from tests.servers import ValkeyServer
from tests.serving import served


@pytest.fixture(scope="module")
def edge_settings(valkey_server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    path = tmp_path_factory.mktemp("record") / "headroom.db"
    return Settings(
        redis_url=valkey_server.url, database_url=f"sqlite:///{path}", max_body_bytes=1024 * 1024, port=0
    )


@pytest.fixture(scope="module")
def port(valkey_server: ValkeyServer, edge_settings: Settings) -> Iterator[int]:
    """Where the API listens, over an empty record and an empty index in force."""
    valkey_server.flush()

    async def prepare() -> None:
        await migrate(edge_settings.record_url)
        index = open_index(edge_settings, purpose="test")
        await index.upkeep.begin_rebuild("test", None)
        assert await index.upkeep.open_epoch("test")
        await index.close()

    asyncio.run(prepare())
    with served(create_app(edge_settings)) as listening:
        yield listening
