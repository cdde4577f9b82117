"""Stores are checked when the process starts, and those that were away then when they come."""

from __future__ import annotations

from unittest.mock import AsyncMock

import pytest

from app.errors import IndexUnavailableError, RecordUnavailableError, StartupRefusedError
from workers.startup import StoreCheck


@pytest.fixture
def index() -> AsyncMock:
    return AsyncMock()


@pytest.fixture
def record() -> AsyncMock:
    return AsyncMock()


async def test_a_store_that_is_fit_is_not_asked_again(index: AsyncMock, record: AsyncMock) -> None:
    check = StoreCheck(index, record)
    record.require_migrated.side_effect = [RecordUnavailableError(), RecordUnavailableError(), None]
    for _ in range(5):
        await check.run_once()
    assert index.refuse_unfit_server.await_count == 1
    assert record.require_migrated.await_count == 3
    assert check.pause_s > 60


async def test_a_store_that_comes_later_is_refused_like_one_that_was_there(
    index: AsyncMock, record: AsyncMock
) -> None:
    check = StoreCheck(index, record)
    index.refuse_unfit_server.side_effect = [IndexUnavailableError(), StartupRefusedError()]
    await check.run_once()
    assert check.pause_s < 5
    with pytest.raises(StartupRefusedError):
        await check.run_once()
