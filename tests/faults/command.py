"""`scripts/faults`: chooses what to break, breaks it on servers of its own, shows and writes what was seen."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, get_args

import msgspec
from rich.console import Console

from tests.faults.page import write_figures
from tests.faults.recovery import RecoveryResult, measure_recovery, recovery_table
from tests.faults.rows import KEPT_FOR_CLAIMS, ROWS
from tests.faults.running import RowsResult, RunFailedError, progress_bar, rows_table, run_rows
from tests.faults.simulation import History, Simulated, simulate_all
from tests.faults.storm import Persistence, StormResult, run_storm, storm_table

_ABOUT: Final = """\
Breaks Headroom on purpose, on servers of its own on loopback ports, and says what was seen.

Without options every row of docs/reliability.md is run: the fault is made on real processes, what must happen is
checked, and once all is quiet index, hashes and record must agree and every agent must show its last acknowledged
heartbeat. The last line counts the rows; the exit status is 1 unless all held.
"""
_EXAMPLES: Final = """\
examples:
  scripts/faults                             every row, about ten minutes
  scripts/faults 5 22-27                     some rows
  scripts/faults --list                      what the rows are
  scripts/faults --simulate                  random histories in simulated time: 10,000 agent-hours, 200 seeds
  scripts/faults --simulate --seed 17        one of them again
  scripts/faults --storm                     kill -9 of ingest, recorder and API at random for two minutes
  scripts/faults --storm --redis everysec    the same, and Redis dies as well
  scripts/faults --recovery                  how long 100,000 agents take after FLUSHALL, and without Postgres
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Ends with 0, 1 (something did not hold), 2 (wrong arguments) or 130 (Ctrl-C)."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.rows and (options.simulate or options.storm or options.recovery or options.figures or options.page):
        parser.error("some rows only, and none of the other kinds, nor --page, which wants all rows")
    if options.seed is not None and not (options.simulate or options.storm):
        parser.error("--seed is for --simulate and --storm")
    # Servers are ended by the blocks that started them, also when a person or CI ends the run.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    console = Console() if sys.stdout.isatty() else Console(width=150)
    try:
        return _run(options, console)
    except RunFailedError as failed:
        console.print(str(failed), markup=False)
        return 1
    except KeyboardInterrupt:
        return 130


def _run(options: argparse.Namespace, console: Console) -> int:
    if options.list:
        for number, row in ROWS.items():
            console.print(f"{number:3}  {row.fault}: {row.promise}", markup=False, highlight=False, soft_wrap=True)
        return 0
    if options.simulate:
        return _simulate(options, console)
    if options.storm:
        return _storm(options, console)
    if options.recovery:
        return _recovery(options, console)
    if options.figures:
        return _figures(options, console)
    return _rows(options, console)


def _figures(options: argparse.Namespace, console: Console) -> int:
    """Everything, as the page has it."""
    options.page = True
    failed = _rows(options, console)
    failed |= _simulate(options, console)
    for persistence in (None, *get_args(Persistence)):
        options.redis = persistence
        failed |= _storm(options, console)
    return failed | _recovery(options, console)


def _rows(options: argparse.Namespace, console: Console) -> int:
    chosen = sorted({row for rows in options.rows for row in rows}) or list(ROWS)
    result = run_rows(chosen, console, quick=options.quick)
    console.print(rows_table(result))
    _write(result, options)
    console.print(f"in {result.took_s / 60:.1f} minutes")
    console.print(result.verdict, highlight=False)
    return 0 if result.held == len(result.rows) else 1


def _simulate(options: argparse.Namespace, console: Console) -> int:
    seeds = range(options.seeds) if options.seed is None else [options.seed]
    started = time.monotonic()
    histories: list[History] = []
    with progress_bar(console) as progress:
        task = progress.add_task("simulating", total=len(seeds))
        for history in simulate_all(seeds, options.hours / options.seeds, processes=os.cpu_count() or 1):
            histories.append(history)
            progress.advance(task)
            hours = sum(one.agent_hours for one in histories)
            progress.update(task, description=f"{hours:,.0f} agent-hours")
            if history.broken:
                console.print(f"seed {history.seed} is broken:", *history.broken[:10], sep="\n  ", markup=False)
    result = Simulated(took_s=round(time.monotonic() - started, 1), histories=histories)
    _write(result, options)
    for kind, count in sorted(result.faults.items()):
        console.print(f"{count:9,}  {kind}")
    console.print(
        f"{result.heartbeats:,} heartbeats, {result.lookups:,} searches, {result.checks:,} times compared; "
        f"in {result.took_s / 60:.1f} minutes"
    )
    for history in result.broken:
        console.print(f"again: {_again(options, history.seed)}", highlight=False, soft_wrap=True)
    console.print(result.verdict, highlight=False, soft_wrap=True)
    return 1 if result.broken else 0


def _again(options: argparse.Namespace, seed: int) -> str:
    return f"scripts/faults --simulate --hours {options.hours:g} --seeds {options.seeds} --seed {seed}"


def _storm(options: argparse.Namespace, console: Console) -> int:
    with progress_bar(console) as progress:
        task = progress.add_task("starting servers", total=round(options.seconds))
        result = run_storm(
            options.seconds,
            rate=options.rate,
            seed=options.seed or 0,
            persistence=options.redis,
            tell=lambda passed_s: progress.update(
                task, completed=round(passed_s), description="killing at random"
            ),
        )
    _write(result, options)
    console.print(storm_table(result))
    console.print(*result.differences[:20], sep="\n", markup=False)
    console.print(result.verdict, highlight=False, soft_wrap=True)
    return 0 if result.held else 1


def _recovery(options: argparse.Namespace, console: Console) -> int:
    with console.status("starting servers") as status:
        result = measure_recovery(options.agents, tell=status.update)
    _write(result, options)
    console.print(recovery_table(result))
    console.print(result.verdict, highlight=False, soft_wrap=True)
    return 0 if result.held else 1


def _write(result: RowsResult | Simulated | StormResult | RecoveryResult, options: argparse.Namespace) -> None:
    if options.page:
        write_figures(result)
    if options.json is not None:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/faults",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("rows", nargs="*", type=_rows_of, metavar="ROW", help="a row, or several as 22-27")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--simulate", action="store_true", help="random histories in simulated time instead of rows")
    kind.add_argument("--storm", action="store_true", help="kill -9 at random under load instead of rows")
    kind.add_argument("--recovery", action="store_true", help="how long a large fleet takes to be whole again")
    kind.add_argument("--figures", action="store_true", help="all of these, into docs/reliability.md")
    parser.add_argument(
        "--hours", type=_positive, default=10_000, help="simulated agent-hours of all seeds (%(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=200, help="histories to simulate (%(default)s)")
    parser.add_argument("--seed", type=int, help="only this history, or the storm of this seed")
    parser.add_argument("--seconds", type=_positive, default=120, help="how long a storm lasts (%(default)s)")
    parser.add_argument("--rate", type=_positive, default=1_000, help="heartbeats a second in it (%(default)s)")
    parser.add_argument(
        "--redis", choices=get_args(Persistence), help="in a storm Redis dies as well, and persists so"
    )
    parser.add_argument("--agents", type=int, default=100_000, help="of the large fleet (%(default)s)")
    parser.add_argument("--page", action="store_true", help="put what was seen into docs/reliability.md")
    parser.add_argument("--list", action="store_true", help="say what the rows are")
    parser.add_argument("--quick", action="store_true", help="leave out what takes minutes, as scripts/test does")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was seen to this file")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be above 0: {text}")
    return value


def _rows_of(text: str) -> list[int]:
    first, dash, last = text.partition("-")
    if not first.isdigit() or (dash and not last.isdigit()):
        raise argparse.ArgumentTypeError(f"not a row: {text}")
    numbers = range(int(first), int(last if dash else first) + 1)
    rows = [number for number in numbers if number in ROWS]
    if not dash and not rows:
        why = "is about claims" if int(first) in KEPT_FOR_CLAIMS else "does not exist"
        raise argparse.ArgumentTypeError(f"row {first} {why}; --list shows all")
    return rows
