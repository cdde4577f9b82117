"""A plugin for pytest: chooses the tests of some rows, and tells `scripts/faults` in lines of JSON how they go."""

from __future__ import annotations

import os
from typing import Any, TextIO

import msgspec
import pytest

from tests.faults.rows import row_of


class Began(msgspec.Struct, frozen=True, tag=True):
    row: int
    test: str


class Ended(msgspec.Struct, frozen=True, tag=True):
    """One test of a row.

    Attributes:
        test: its node id.
        done: what was done.
        seen: what was seen.
        held: whether all was as it must be.
        error: the last line of what went wrong, empty when nothing did.
        lookups: how many were answered during the fault.
        unanswered: how many got no answer at all.
        p99_ms: of these lookups; None where none were made.
        slowest_ms: of these lookups.
    """

    row: int
    test: str
    done: str
    seen: str
    held: bool
    took_s: float
    error: str = ""
    lookups: int = 0
    unanswered: int = 0
    p99_ms: float | None = None
    slowest_ms: float | None = None


class Collected(msgspec.Struct, frozen=True, tag=True):
    tests: int


Told = Began | Ended | Collected


class Teller:
    """Hooks of one run."""

    def __init__(self, rows: frozenset[int], out: TextIO) -> None:
        self._rows = rows
        self._out = out
        self._errors: dict[str, str] = {}
        self._took_s: dict[str, float] = {}

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        chosen = [item for item in items if row_of(item.name) in self._rows]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = sorted(chosen, key=lambda item: row_of(item.name) or 0)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._tell(Collected(len(session.items)))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._tell(Began(_row(nodeid), nodeid))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid
        self._took_s[name] = self._took_s.get(name, 0.0) + report.duration
        if report.failed:
            self._errors.setdefault(name, _last_line(report))
        if report.when == "teardown":
            said: dict[str, Any] = dict(report.user_properties)
            error = self._errors.get(name, "")
            self._tell(
                Ended(
                    _row(name),
                    name,
                    said.get("done", ""),
                    said.get("seen", ""),
                    held=not error,
                    took_s=round(self._took_s[name], 1),
                    error=error,
                    lookups=said.get("lookups", 0),
                    unanswered=said.get("lookups_unanswered", 0),
                    p99_ms=said.get("lookups_p99_ms"),
                    slowest_ms=said.get("lookups_slowest_ms"),
                )
            )

    def _tell(self, told: Told) -> None:
        self._out.write(msgspec.json.encode(told).decode() + "\n")
        self._out.flush()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-rows", help="only the tests of these rows, with commas")
    parser.addoption("--tell", type=int, help="a file descriptor for lines of JSON")


def pytest_configure(config: pytest.Config) -> None:
    rows = frozenset(int(row) for row in config.getoption("--fault-rows").split(","))
    # Servers that tests start must not hold the pipe open.
    os.set_inheritable(config.getoption("--tell"), False)
    config.pluginmanager.register(Teller(rows, os.fdopen(config.getoption("--tell"), "w")))


def _row(nodeid: str) -> int:
    row = row_of(nodeid.rpartition("::")[2])
    assert row is not None
    return row


def _last_line(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    lines = (crash.message if crash is not None else report.longreprtext).strip().splitlines()
    return lines[0][:500] if lines else "failed"
