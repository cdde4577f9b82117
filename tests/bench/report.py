"""The tables that a run prints."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from tests.bench.lookups import Line
from tests.bench.questions import QUESTIONS
from tests.bench.results import Results


def print_results(results: Results, console: Console) -> None:
    console.print(
        f"{results.checked:,} lookups checked against the oracle, all right. "
        f"{results.took_s:.0f} s on {results.machine.processor}, {results.machine.cores} cores."
    )
    cells: dict[tuple[str, int, str], list[Line]] = {}
    for line in results.lines:
        cells.setdefault((line.fleet, line.size, line.phase), []).append(line)
    for (fleet, size, phase), lines in cells.items():
        console.print(_table(f"{fleet}, {size:,} agents, {phase}", lines))


def _table(title: str, lines: list[Line]) -> Table:
    table = Table(title=title, title_justify="left", caption="p50 ms (p99 ms)", caption_justify="left")
    table.add_column("side")
    asked = [question.name for question in QUESTIONS if any(line.question == question.name for line in lines)]
    for name in asked:
        table.add_column(name, justify="right")
    by_side: dict[str, dict[str, Line]] = {}
    for line in lines:
        by_side.setdefault(line.side, {})[line.question] = line
    for side, found in by_side.items():
        table.add_row(side, *(_cell(found.get(name)) for name in asked))
    return table


def _cell(line: Line | None) -> str:
    if line is None:
        return ""
    return f"{milliseconds(line.summary.p50_ms)} ({milliseconds(line.summary.p99_ms)})"


def milliseconds(value: float) -> str:
    """Three digits that count."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"
