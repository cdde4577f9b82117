"""Which servers may hold the index. Those that can be had here start in tests/faults/test_start.py."""

from __future__ import annotations

from unittest.mock import AsyncMock

import pytest

from app.errors import StartupRefusedError
from app.index import requirements
from app.index.requirements import refuse_unfit_server


def server(version: str) -> AsyncMock:
    """One that has all commands."""
    client = AsyncMock()
    client.info.return_value = {"redis_version": version, "maxmemory_policy": "noeviction"}
    client.execute_command.return_value = [[name] for name in requirements._COMMANDS]
    return client


@pytest.mark.parametrize("version", ["6.2.14", "5.0.7"])
async def test_an_old_redis_is_refused_by_its_version(version: str) -> None:
    with pytest.raises(StartupRefusedError, match=f"Redis {version}: use Redis 7.0 or newer"):
        await refuse_unfit_server(server(version))


@pytest.mark.parametrize("version", ["7.0.15", "7.2.4", "8.2.0", "10.0", "255.255.255", "unstable"])
async def test_a_newer_one_is_taken(version: str) -> None:
    await refuse_unfit_server(server(version))
