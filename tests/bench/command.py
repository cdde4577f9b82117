"""`scripts/bench`: chooses what to measure, runs it on servers of its own, prints and writes what came out."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from app.record import migrate
from tests.bench import report
from tests.bench.filling import filling_pool
from tests.bench.fleets import FLEETS, make_fleet
from tests.bench.ingestion import Length, measure_ingestion
from tests.bench.lookups import Effort, Grounds, measure_cell
from tests.bench.machine import describe
from tests.bench.oracle import WrongAnswerError
from tests.bench.page import write_page
from tests.bench.peers import SERVER, Postgres
from tests.bench.pressure import StreamSource, UpdateSource
from tests.bench.programs import api, environment_for
from tests.bench.questions import EVERYTHING
from tests.bench.results import Results
from tests.bench.tables import TABLES
from tests.bench.waiting import Crowd, allow_connections, measure_waiting
from tests.servers import PostgresServer, start_postgres, start_valkey

DOCS: Final = Path(__file__).parents[2] / "docs"

SIZES: Final = (1_000, 10_000, 100_000, 1_000_000)
MILLION_FLEETS: Final = ("mixed", "unlucky")

_LATE_S: Final = 25 * 60.0
"""After this long, what is left is looked at for a shorter time, so that the whole run ends within 45 minutes."""

_QUICK_SIZE: Final = 10_000
_QUICK: Final = Effort(rounds=1, block_s=0.005, load_rounds=1, load_s=0.2)
_SMALL: Final = Effort(rounds=4, block_s=0.02, load_rounds=2, load_s=1.5)
_WHOLE: Final = Effort(rounds=7, block_s=0.03, load_rounds=4, load_s=2.5)
_QUICK_INGESTION: Final = Length(agents=2_000, rounds=1, single=400, batched=4_000, held_s=1.0, probes=20)
_WHOLE_INGESTION: Final = Length(agents=100_000, rounds=2, single=10_000, batched=60_000, held_s=20.0, probes=200)
_QUICK_CROWD: Final = Crowd(others=200, rounds=5, agents=1_000)
_WHOLE_CROWD: Final = Crowd(others=5_000, rounds=100, agents=10_000)


def main(arguments: Sequence[str] | None = None) -> int:
    """Ends with 0, 1 (a wrong answer) or 130 (Ctrl-C)."""
    options = _parser().parse_args(arguments)
    console = Console()
    if options.page_from is not None:
        results = msgspec.json.decode(options.page_from.read_bytes(), type=Results)
        console.print(f"Wrote {write_page(results, DOCS)}")
        return 0
    # Servers and processes are ended by the blocks that started them, also when a person or CI ends the run.
    allow_connections()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        results = run(options, console)
    except WrongAnswerError as wrong:
        console.print(f"[bold red]Wrong answer:[/] {wrong}")
        return 1
    except KeyboardInterrupt:
        return 130
    report.print_results(results, console)
    if options.json is not None:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(results)) + b"\n")
    if results.whole:
        console.print(f"Wrote {write_page(results, DOCS)}")
    return 0


def run(options: argparse.Namespace, console: Console) -> Results:
    started = time.monotonic()
    narrowed = bool(options.size or options.fleet or options.call)
    cells = _cells(options) if options.only in {None, "lookups"} else []
    with_ingestion = options.only in {None, "ingestion"} and not narrowed
    with_waiting = options.only in {None, "waiting"} and not narrowed
    with ExitStack() as closing:
        progress = closing.enter_context(_progress(console))
        task = progress.add_task("starting servers", total=len(cells) + with_ingestion + with_waiting)
        server = closing.enter_context(start_postgres(config=SERVER))
        grounds = closing.enter_context(_grounds(server))
        results = Results(
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            whole=not any(
                (options.quick, options.only, options.size, options.fleet, options.call, options.at_rest)
            ),
            quick=options.quick,
            machine=describe(grounds),
        )
        # First: a server that has held other fleets finds less of this one in its caches.
        if with_ingestion:
            results.ingestion = measure_ingestion(
                grounds,
                server,
                _QUICK_INGESTION if options.quick else _WHOLE_INGESTION,
                tell=lambda what: progress.update(task, description=f"ingestion: {what}"),
            )
            results.checked += results.ingestion.checked
            progress.advance(task)
        for name, size in cells:
            progress.update(task, description=f"{name}, {size:,} agents")
            cell = measure_cell(
                grounds,
                make_fleet(name, size),
                _effort(options, name, size, late=time.monotonic() - started > _LATE_S),
                [question for question in EVERYTHING if not options.call or question.name in options.call],
                tell=lambda what, name=name, size=size: progress.update(  # type: ignore[misc]  # bound on purpose
                    task, description=f"{name}, {size:,} agents: {what}"
                ),
            )
            results.lines.extend(cell.lines)
            results.loads.extend(cell.loads)
            results.checked += cell.checked
            progress.advance(task)
        if with_waiting:
            results.waiting = measure_waiting(
                grounds,
                _QUICK_CROWD if options.quick else _WHOLE_CROWD,
                tell=lambda what: progress.update(task, description=f"waiting: {what}"),
            )
            results.checked += results.waiting.checked
            progress.advance(task)
    results.took_s = round(time.monotonic() - started, 1)
    return results


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--size", type=_sizes, help="1k, 10k, 100k, 1M, or several with commas; default: all")
    parser.add_argument("--fleet", type=_fleets, help=f"{', '.join(FLEETS)}, or several with commas; default: all")
    parser.add_argument(
        "--call", type=_calls, help="top 10, top 1, count …, or several with semicolons; default: all"
    )
    parser.add_argument("--only", choices=("lookups", "ingestion", "waiting"), help="leave out the rest")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to this file")
    parser.add_argument("--quick", action="store_true", help="10k only, for correctness rather than times")
    parser.add_argument("--at-rest", action="store_true", help="leave out what is measured under load")
    parser.add_argument("--page-from", type=Path, metavar="FILE", help="write the page from an earlier --json")
    return parser


def _sizes(text: str) -> tuple[int, ...]:
    factors = {"k": 1_000, "m": 1_000_000}
    sizes = []
    for part in text.lower().split(","):
        factor = factors.get(part[-1:], 1)
        digits = part[:-1] if factor > 1 else part
        if not digits.isdigit() or not int(digits):
            raise argparse.ArgumentTypeError(f"not a size: {part}")
        sizes.append(int(digits) * factor)
    return tuple(sizes)


def _calls(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(";"))
    if unknown := set(names) - {question.name for question in EVERYTHING}:
        raise argparse.ArgumentTypeError(f"no such call: {min(unknown)}")
    return names


def _fleets(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(FLEETS):
        raise argparse.ArgumentTypeError(f"no such fleet: {min(unknown)}")
    return names


def _cells(options: argparse.Namespace) -> list[tuple[str, int]]:
    sizes = options.size or ((_QUICK_SIZE,) if options.quick else SIZES)
    return [
        (name, size)
        for size in sizes
        for name in options.fleet or FLEETS
        if size <= 100_000 or options.fleet or name in MILLION_FLEETS
    ]


def _effort(options: argparse.Namespace, fleet: str, size: int, *, late: bool) -> Effort:
    effort = _QUICK if options.quick else _WHOLE if size >= 100_000 and not late else _SMALL
    without_load = options.at_rest or (options.quick and fleet not in MILLION_FLEETS)
    return msgspec.structs.replace(effort, load_s=0.0) if without_load else effort


@contextmanager
def _grounds(server: PostgresServer) -> Iterator[Grounds]:
    with ExitStack() as closing:
        # No persistence; everything else as the server's defaults have it.
        valkey = closing.enter_context(start_valkey())
        directory = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="hr-bench-")))
        record_url = f"sqlite+aiosqlite:///{directory / 'record.db'}"
        asyncio.run(migrate(record_url))
        environment = environment_for(valkey.url, record_url)
        postgres = Postgres(server.url)
        closing.callback(postgres.close)
        port = closing.enter_context(api(environment))
        pool = closing.enter_context(filling_pool())
        yield Grounds(
            valkey=valkey,
            postgres=postgres,
            api_port=port,
            environment=environment,
            pool=pool,
            with_gist=postgres.has_btree_gist(),
            stream_source=closing.enter_context(StreamSource(valkey.url)),
            update_sources={
                table.name: closing.enter_context(UpdateSource(server.url, table)) for table in TABLES
            },
        )


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        # A log file has no use for a moving bar.
        disable=not console.is_terminal and "FORCE_COLOR" not in os.environ,
    )


if __name__ == "__main__":
    sys.exit(main())
