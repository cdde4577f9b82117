"""Which errors mean that the record is away, which that a transaction collided, which that a row is bad."""

from __future__ import annotations

import sqlite3
from typing import Any

import asyncpg
import pytest
from sqlalchemy.exc import DBAPIError, ProgrammingError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from app.errors import RecordUnavailableError
from app.record.failures import OvertakenError, is_away, is_bad_row, is_collision, translated


class DriverError(Exception):
    """As SQLAlchemy's asyncpg dialect makes them: the state on it, asyncpg's own error as its cause."""

    def __init__(self, sqlstate: str | None) -> None:
        super().__init__("secret values")
        self.sqlstate = sqlstate


def postgres(sqlstate: str | None, cause: Exception | None = None, **options: Any) -> DBAPIError:
    driver = DriverError(sqlstate)
    driver.__cause__ = cause
    return DBAPIError("SELECT 1", {}, driver, **options)


def sqlite(code: int) -> DBAPIError:
    driver = sqlite3.OperationalError("secret values")
    driver.sqlite_errorcode = code
    driver.sqlite_errorname = "SQLITE_X"
    return DBAPIError("SELECT 1", {}, driver)


AWAY = [
    PoolTimeoutError(),
    TimeoutError(),
    ConnectionRefusedError(),
    asyncpg.CannotConnectNowError(),
    asyncpg.TooManyConnectionsError(),
    postgres(None, connection_invalidated=True),
    postgres(None, cause=TimeoutError()),
    postgres(None, cause=asyncpg.InterfaceError("connection is closed")),
    *(
        postgres(state)
        for state in ("08006", "53100", "53200", "53300", "57P01", "57P03", "57014", "55P03", "25006")
    ),
    *(sqlite(code) for code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_BUSY_SNAPSHOT, sqlite3.SQLITE_FULL)),
    sqlite(sqlite3.SQLITE_IOERR_WRITE),
]
COLLIDED = [OvertakenError(), postgres("40P01"), postgres("40001")]
BAD_ROW = [
    postgres("22003"),
    postgres("22021"),
    postgres("23502"),
    postgres("54000"),
    postgres(None, cause=asyncpg.DataError("secret values")),
    sqlite(sqlite3.SQLITE_CONSTRAINT_NOTNULL),
    OverflowError(),
    UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
    StatementError("secret values", "SELECT 1", {}, OverflowError()),
]
BUGS = [
    postgres("42P01"),
    postgres("28P01"),
    postgres("3D000"),
    postgres(None, cause=asyncpg.InterfaceError("another operation is in progress")),
    sqlite(sqlite3.SQLITE_ERROR),
    sqlite(sqlite3.SQLITE_CORRUPT),
    ProgrammingError("SELECT 1", {}, DriverError(None)),
    ValueError(),
]


def name(error: Exception) -> str:
    driver = getattr(error, "orig", None) or error
    code = getattr(driver, "sqlstate", None) or getattr(driver, "sqlite_errorcode", "")
    return f"{type(driver.__cause__ or driver).__name__}-{code}"


@pytest.mark.parametrize("error", [*AWAY, *COLLIDED, *BAD_ROW, *BUGS], ids=name)
def test_every_error_means_one_thing(error: Exception) -> None:
    assert (is_away(error), is_collision(error), is_bad_row(error)) == (
        error in AWAY,
        error in COLLIDED,
        error in BAD_ROW,
    )


@pytest.mark.parametrize("error", [*AWAY, *COLLIDED], ids=name)
def test_what_may_succeed_later_becomes_one_error(error: Exception) -> None:
    with pytest.raises(RecordUnavailableError) as caught, translated():
        raise error
    assert caught.value.__cause__ is error
    assert caught.value.retry_after_s is not None


@pytest.mark.parametrize("error", BUGS, ids=name)
def test_a_bug_stays_what_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, translated():
        raise error
    assert caught.value is error


def test_no_value_of_a_row_reaches_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    for error in (postgres("53100"), sqlite(sqlite3.SQLITE_FULL)):
        with pytest.raises(RecordUnavailableError), translated():
            raise error
    assert "secret" not in capsys.readouterr().out
