"""Runs the tests of some rows in a process of their own and shows what was done, what was seen, and what held."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.faults.rows import ROWS
from tests.faults.telling import Began, Collected, Ended, Told

_ROOT: Final = Path(__file__).resolve().parents[2]


class RowResult(msgspec.Struct, frozen=True):
    """All tests of one row."""

    row: int
    fault: str
    held: bool
    tests: list[Ended]


class RowsResult(msgspec.Struct, frozen=True):
    took_s: float
    rows: list[RowResult]

    @property
    def held(self) -> int:
        return sum(row.held for row in self.rows)

    @property
    def verdict(self) -> str:
        return f"{len(self.rows)} {'row' if len(self.rows) == 1 else 'rows'}, {self.held} held"


class RunFailedError(Exception):
    """The tests could not be run at all."""


def run_rows(rows: Collection[int], console: Console, *, quick: bool = False) -> RowsResult:
    """Runs every test of these rows.

    Args:
        rows: their numbers.
        console: where progress is shown.
        quick: leaves out what takes minutes.

    Raises:
        RunFailedError: pytest itself failed.
    """
    started = time.monotonic()
    ended: dict[int, list[Ended]] = {row: [] for row in rows}
    with progress_bar(console) as progress:
        task = progress.add_task("collecting", total=None)
        for told in _told(rows, console, quick=quick):
            if isinstance(told, Collected):
                progress.update(task, total=told.tests, description="starting servers")
            elif isinstance(told, Began):
                progress.update(task, description=f"row {told.row}: {_plain(ROWS[told.row].fault)}")
            else:
                ended[told.row].append(told)
                progress.advance(task)
                if progress.disable:
                    held = "held" if told.held else "NOT HELD"
                    name = told.test.rpartition("::")[2]
                    console.print(f"{held}  {told.took_s:6.1f} s  {name}", markup=False, highlight=False)
    results = [
        # A row without a test has not been seen to hold.
        RowResult(row, ROWS[row].fault, held=bool(tests) and all(test.held for test in tests), tests=tests)
        for row, tests in sorted(ended.items())
    ]
    return RowsResult(took_s=round(time.monotonic() - started, 1), rows=results)


def _told(rows: Collection[int], console: Console, *, quick: bool) -> Iterator[Told]:
    with tempfile.NamedTemporaryFile("wb", prefix="headroom-faults-", suffix=".log", delete=False) as log:
        reading, writing = os.pipe()
        chosen = ",".join(str(row) for row in rows)
        child = subprocess.Popen(
            [sys.executable, "-m", "pytest", "tests/faults", "-p", "tests.faults.telling",
             f"--fault-rows={chosen}", f"--tell={writing}", "-m", "not heavy" if quick else "",
             "-p", "no:cacheprovider"],
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[writing],
        )  # fmt: skip
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as lines:
            for line in lines:
                yield msgspec.json.decode(line, type=Told)
        status = child.wait()
    except BaseException:
        # Ctrl-C reaches it as well; it ends its servers before it ends itself.
        child.terminate()
        child.wait()
        raise
    path = Path(log.name)
    if status == 0:
        path.unlink()
    elif status == 1:
        console.print(f"What the tests wrote: {path}", style="dim")
    else:
        raise RunFailedError(path.read_text(errors="replace")[-3000:])


def rows_table(result: RowsResult) -> Table:
    table = Table(expand=True)
    table.add_column("row", justify="right")
    table.add_column("what was done", ratio=5)
    table.add_column("what was seen", ratio=6)
    table.add_column("lookups p99", justify="right", no_wrap=True)
    table.add_column("slowest", justify="right", no_wrap=True)
    table.add_column("no answer", justify="right", no_wrap=True)
    table.add_column("held")
    for row in result.rows:
        if not row.tests:
            table.add_row(str(row.row), row.fault, "there is no test", "", "", "", "[bold red]no")
        previous = ""
        for index, test in enumerate(row.tests):
            done = "" if test.done == previous else test.done
            previous = test.done
            table.add_row(
                "" if index else str(row.row),
                escape(done),
                escape(test.seen) if test.held else f"[red]{escape(test.error)}",
                _ms(test.p99_ms),
                _ms(test.slowest_ms),
                str(test.unanswered) if test.lookups or test.unanswered else "",
                "yes" if test.held else "[bold red]no",
            )
        table.add_section()
    return table


def progress_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        # A log file has no use for a moving bar.
        disable=not console.is_terminal and "FORCE_COLOR" not in os.environ,
    )


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f} ms" if value >= 10 else f"{value:.1f} ms"


def _plain(text: str) -> str:
    return text.replace("`", "")
