"""The tables that a run prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tests.bench.ingestion import Ingestion
from tests.bench.lookups import Line
from tests.bench.questions import INSIGHTS, QUESTIONS, Question
from tests.bench.results import Results
from tests.bench.targets import targets
from tests.bench.waiting import Waiting


def print_results(results: Results, console: Console) -> None:
    console.print(
        f"{results.checked:,} lookups checked against the oracle, all right. "
        f"{results.took_s:.0f} s on {results.machine.processor}, {results.machine.cores} cores."
    )
    cells: dict[tuple[str, int, str], list[Line]] = {}
    for line in results.lines:
        cells.setdefault((line.fleet, line.size, line.phase), []).append(line)
    for (fleet, size, phase), lines in cells.items():
        title = f"{fleet}, {size:,} agents, {phase}"
        console.print(_table(title, lines, QUESTIONS))
        told = [line for line in lines if any(line.question == question.name for question in INSIGHTS)]
        if told:
            console.print(_table(f"{title}: about the whole fleet", told, INSIGHTS))
    if results.ingestion is not None:
        console.print(_ingestion_table(results.ingestion))
    if results.waiting is not None:
        console.print(_waiting_table(results.waiting))
    if not results.quick and any(target.met is not None for target in targets(results)):
        console.print(_targets_table(results))


def _targets_table(results: Results) -> Table:
    table = Table(title="It must show", title_justify="left")
    for name in ("what", "asked", "measured", ""):
        table.add_column(name)
    for target in targets(results):
        if target.met is not None:
            verdict = "[green]met[/]" if target.met else "[bold red]not met[/]"
            table.add_row(target.what, target.asked, target.measured, verdict)
    return table


def _ingestion_table(found: Ingestion) -> Table:
    table = Table(title=f"ingestion, {found.agents:,} agents", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("how much", justify="right")
    for rate in found.rates:
        table.add_row(rate.name, f"{rate.per_s:,.0f}/s")
        if rate.cpu_us:
            spent = ", ".join(f"{name} {spent_us:.0f}" for name, spent_us in rate.cpu_us.items())
            table.add_row("  CPU for each, µs", spent)
    for delay in found.delays:
        table.add_row(f"visible after, beside {delay.name}", f"{delay.p50_ms:g} ms (p99 {delay.p99_ms:g})")
    if (held := found.held) is not None:
        for name, loaded in held.loaded.items():
            idle = milliseconds(held.idle[name].p50_ms)
            table.add_row(
                f"{name}, idle and at {held.per_s:,.0f} heartbeats/s",
                f"{idle} and {milliseconds(loaded.p50_ms)} ms (p99 {milliseconds(loaded.p99_ms)})",
            )
    for memory in found.memory:
        table.add_row(
            f"memory per agent, {memory.pools} pools",
            f"{memory.bytes:,.0f} B, {memory.pool_sets_bytes:,.0f} of them for pool filters",
        )
    if (refill := found.refill) is not None:
        table.add_row(f"refill of {refill.agents:,} agents", f"{refill.seconds:.2f} s")
    return table


def _waiting_table(found: Waiting) -> Table:
    title = f"waiting, {found.agents:,} agents, {found.others:,} others wait"
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("how much", justify="right")
    table.add_row("answered after the 202", f"{found.answered_p50_ms:g} ms (p99 {found.answered_p99_ms:g})")
    table.add_row("in the index after the 202", f"{found.visible_p50_ms:g} ms")
    table.add_row("answered beyond that", f"{found.beyond_p50_ms:g} ms")
    return table


def _table(title: str, lines: list[Line], questions: Sequence[Question]) -> Table:
    table = Table(title=title, title_justify="left", caption="p50 ms (p99 ms)", caption_justify="left")
    table.add_column("side")
    asked = [question.name for question in questions if any(line.question == question.name for line in lines)]
    for name in asked:
        table.add_column(name, justify="right")
    by_side: dict[str, dict[str, Line]] = {}
    for line in lines:
        if line.question not in asked:
            continue
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
