"""Which errors of a driver mean what: away, collided, or one bad row. Everything else is a bug and stays loud."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import asyncpg
from sqlalchemy.exc import DBAPIError, SQLAlchemyError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from app.errors import RecordUnavailableError
from app.telemetry import logger

_log = logger(__name__)

# Classes 08 (connection) and 53 (disk full, out of memory, too many connections), 57P01-57P03 (shutdown, crash,
# starting up), 57014 (statement timeout), 55P03 (lock timeout), 25P03 (idle in transaction), 25006 (a standby).
_AWAY_CLASSES: Final = ("08", "53")
_AWAY_STATES: Final = frozenset({"57P01", "57P02", "57P03", "57014", "55P03", "25P03", "25006"})
_COLLIDED_STATES: Final = frozenset({"40P01", "40001"})
_AWAY_SQLITE: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
    }
)
_BAD_ROW_SQLITE: Final = frozenset(
    {sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_RANGE}
)


class OvertakenError(Exception):
    """Another writer changed a row between our reading and our writing of it; the transaction must start again."""


DRIVER_ERRORS: Final = (
    SQLAlchemyError,
    asyncpg.PostgresError,
    OSError,
    OverflowError,
    UnicodeError,
    OvertakenError,
)
"""Whatever a statement may raise; the functions below tell apart what it means."""


def is_away(error: BaseException) -> bool:
    """Whether the database is unreachable, too slow, full or shutting down: the same call may succeed later."""
    if isinstance(error, (PoolTimeoutError, TimeoutError, OSError)):
        return True
    if isinstance(error, asyncpg.PostgresError):  # raised while connecting, where SQLAlchemy does not wrap it
        return _means_away(error.sqlstate)
    if not isinstance(error, DBAPIError):
        return False
    cause = _driver_error(error)
    return (
        error.connection_invalidated
        or isinstance(cause, (TimeoutError, OSError))
        or _means_away(_sqlstate(error))
        or _sqlite_code(cause) in _AWAY_SQLITE
        or _closed_under_us(cause)
    )


def is_collision(error: BaseException) -> bool:
    """Whether the transaction lost against another one and may simply run again."""
    if isinstance(error, OvertakenError):
        return True
    return isinstance(error, DBAPIError) and _sqlstate(error) in _COLLIDED_STATES


def is_bad_row(error: BaseException) -> bool:
    """Whether a value in the batch is what the database refuses; no retry can help that row."""
    if isinstance(error, DBAPIError):
        state = _sqlstate(error) or ""
        cause = _driver_error(error)
        return (
            state[:2] in {"22", "23"}
            or state == "54000"
            or isinstance(cause, asyncpg.DataError)
            or (_sqlite_code(cause) in _BAD_ROW_SQLITE)
        )
    # What the drivers refuse before they send it: integers beyond 64 bits, text that is no UTF-8.
    return isinstance(error, (OverflowError, UnicodeError)) or (
        isinstance(error, StatementError) and isinstance(error.orig, (OverflowError, UnicodeError, ValueError))
    )


@contextmanager
def translated() -> Iterator[None]:
    """The one place where drivers' errors become RecordUnavailableError."""
    try:
        yield
    except DRIVER_ERRORS as error:
        if is_away(error) or is_collision(error):
            _log.warning("The record is away", error=_summary(error))
            raise RecordUnavailableError from error
        raise


def _summary(error: BaseException) -> str:
    """Type and code only: messages of drivers may quote data."""
    cause = _driver_error(error) if isinstance(error, DBAPIError) else error
    code = getattr(cause, "sqlstate", None) or getattr(cause, "sqlite_errorname", None) or ""
    return f"{type(cause).__name__} {code}".rstrip()


def _driver_error(error: DBAPIError) -> BaseException | None:
    """The driver's own exception; SQLAlchemy's asyncpg dialect puts one of its own in between."""
    return error.orig.__cause__ or error.orig if error.orig is not None else None


def _sqlstate(error: DBAPIError) -> str | None:
    state = getattr(error.orig, "sqlstate", None)
    return state if isinstance(state, str) else None


def _means_away(state: str | None) -> bool:
    return state is not None and (state[:2] in _AWAY_CLASSES or state in _AWAY_STATES)


def _sqlite_code(cause: BaseException | None) -> int | None:
    """The primary code: extended ones carry the detail in their upper bits."""
    code = getattr(cause, "sqlite_errorcode", None)
    return code & 0xFF if isinstance(code, int) else None


def _closed_under_us(cause: BaseException | None) -> bool:
    # asyncpg has no class for it; "another operation is in progress" is of the same class and is a bug of ours.
    return isinstance(cause, asyncpg.InterfaceError) and "closed" in str(cause)
