"""docs/benchmarks.md and its plots, written from the results of a whole run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from tests.bench import plots
from tests.bench.fleets import DESCRIPTIONS, FLEETS
from tests.bench.ingestion import Ingestion
from tests.bench.lookups import Phase
from tests.bench.questions import INSIGHTS, QUESTIONS, TOP_10
from tests.bench.report import milliseconds
from tests.bench.results import Results
from tests.bench.targets import LOAD_ALL, SIZE, Figures, main_question, targets
from tests.bench.waiting import Waiting

_NOTES_BEGIN: Final = "<!-- notes: written by hand, kept by scripts/bench -->\n"
_NOTES_END: Final = "<!-- end -->\n"
_NO_NOTES: Final = "\nNothing to add to this run.\n\n"

_SIDES: Final = (
    "PING",
    "index",
    "bare FastAPI route",
    "index through HTTP",
    "SELECT 1",
    "Postgres btree",
    "Postgres GiST",
    "Postgres JSON filter",
    "client-side intersection",
    "ZINTER on the server",
    LOAD_ALL,
)
_COMPARED: Final = ("index", "Postgres btree", "Postgres GiST")


def write_page(results: Results, docs: Path) -> Path:
    """Writes page and plots below `docs` and returns the page's path; notes written by hand stay."""
    folder = docs / "benchmarks"
    folder.mkdir(exist_ok=True)
    for name, drawing in _drawings(results).items():
        (folder / f"{name}.svg").write_text(drawing, encoding="utf-8")
    path = docs / "benchmarks.md"
    path.write_text("".join(_page(results, _notes(path))), encoding="utf-8")
    return path


def _notes(path: Path) -> str:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    notes, end, _ = text.partition(_NOTES_BEGIN)[2].partition(_NOTES_END)
    return notes if end else _NO_NOTES


def _page(results: Results, notes: str) -> Iterator[str]:
    figures = Figures(results)
    machine = results.machine
    yield _INTRO.format(
        day=results.started[:10],
        minutes=round(results.took_s / 60),
        checked=results.checked,
        machine=machine,
        apart=_APART if machine.apart else "",
        versions=", ".join(f"{name} {number}" for name, number in machine.versions.items()),
    )
    yield "## What it must show\n\n"
    yield from _table(
        ("what", "asked", "measured", ""),
        ((each.what, each.asked, each.measured, _verdict(each.met)) for each in targets(results)),
    )
    yield "\n## Where a figure is not reached\n\n" + _NOTES_BEGIN + notes + _NOTES_END
    yield f"\n## Fleets of {SIZE:,} agents\n\n"
    yield "".join(f"- **{name}**: {description}\n" for name, description in DESCRIPTIONS.items())
    yield "\nThe ten agents with the most VRAM among those with 16 GB and 16 cores free (just-below: 12 cores).\n"
    for phase, intro in _PHASES:
        yield f"\n{intro}\n\n"
        yield from _by_fleet(figures, phase)
    yield (
        "\n![Median lookup at rest in each fleet, index against the indexed Postgres tables.]"
        "(benchmarks/fleets.svg)\n"
        "\n![99th percentile in each fleet while heartbeats are applied.](benchmarks/fleets-under-load.svg)\n"
    )
    yield "\n## Sizes\n\nTop 10, fleet mixed, at rest.\n\n"
    yield from _by_size(figures, results)
    yield "\n![Median lookup over the size of the fleet.](benchmarks/sizes.svg)\n"
    yield f"\n## Calls\n\nFleet mixed, {SIZE:,} agents, at rest. 16 cores are a rung of the ladder; a search for\n"
    yield "12 reads one band more, one for 17 four.\n\n"
    yield from _by_call(figures)
    yield from _about_the_whole(figures)
    if results.ingestion is not None:
        yield from _ingestion(results.ingestion)
    if results.waiting is not None:
        yield from _waiting(results.waiting)
    yield from _loads(results)
    yield _METHOD


_PHASES: Final[tuple[tuple[Phase, str], ...]] = (
    ("at rest", "At rest:"),
    ("under load", "While the heartbeats of the whole fleet are applied, one per agent in 30 s:"),
)

_APART: Final = """ At rest the one
who asks has a core to itself, all servers the others, and no core falls asleep: waking a virtual one takes longer
than a lookup, and by chance it would be one side or another that waits for it."""

_INTRO: Final = """\
# Benchmarks

Written by `./scripts/bench`, which anybody can run: it starts its own servers, builds the fleets, asks all sides
in turn and checks every answer. A single wrong one ends the run.

This run: {day}, {minutes} minutes, {checked:,} lookups checked. Machine: {machine.processor}, {machine.cores}
cores, {machine.memory_gb:g} GiB, {machine.system}; servers, workers and the one who asks share it.{apart}
Versions: {versions}.

Times are milliseconds: the median of the rounds' medians, and in parentheses the 99th percentile of all calls.

"""

_METHOD: Final = """
## How it is measured

- One process asks, one call at a time. Sides take turns block by block; who is first changes from turn to turn.
- `PING` and `index` are `CapacityClient`, blocking, over loopback TCP; its answers are finished Python objects.
- `index through HTTP` and the bare FastAPI route live in one uvicorn process, behind one kept-alive connection
  of a client that does nothing but read the answer and decode its JSON.
- Postgres is asked with asyncpg on uvloop and prepared statements, and hands out rows with the same columns. It
  runs without fsync, with the whole fleet in memory, vacuumed and analysed; autovacuum is on. GiST (btree_gist on
  VRAM and cores) is asked in the order of distance to a VRAM that nobody has, which lets it stop after ten rows.
- `load all` is a SQLAlchemy Core select of every online row of the JSON table, filtered and sorted in Python.
- The intersections use the same two plain sorted sets that people see with redis-cli, and fetch the fields of the
  agents found.
- Every side answers the same question: online and fresh agents of one type, with everything a planner is shown.
  Peers may order ties as they like; the index must break them by id.
- At rest there is one right answer. Under load the oracle applies the same heartbeats one by one, and an answer
  must be exactly that of one moment between the answer before and now. After each phase all must have arrived.
- Under load only the store that is being measured gets heartbeats: the stream with one real ingest worker, or
  a peer's table by batched updates, ten batches a second. What the fleet would send beyond 3,334 a second
  (1,000,000 agents) is more than this setting can take and is left out.
- Redis has its defaults, without persistence. Nobody falls silent during a run.
"""


def _by_fleet(figures: Figures, phase: Phase) -> Iterator[str]:
    def row(side: str) -> list[str]:
        return [
            side,
            *(_cell(figures, side, main_question(fleet), fleet=fleet, phase=phase) for fleet in FLEETS),
        ]

    rows = [row(side) for side in _SIDES]
    yield from _table(("side", *FLEETS), (row for row in rows if any(row[1:])))


def _by_size(figures: Figures, results: Results) -> Iterator[str]:
    sizes = sorted({line.size for line in results.lines})
    rows = [[side, *(_cell(figures, side, TOP_10.name, size=size) for size in sizes)] for side in _SIDES]
    yield from _table(("side", *(f"{size:,}" for size in sizes)), (row for row in rows if any(row[1:])))


def _by_call(figures: Figures) -> Iterator[str]:
    names = [question.name for question in QUESTIONS]
    rows = [[side, *(_cell(figures, side, name) for name in names)] for side in _SIDES]
    yield from _table(("side", *names), (row for row in rows if any(row[1:])))


def _about_the_whole(figures: Figures) -> Iterator[str]:
    yield (
        f"\n## Questions about the whole fleet\n\nFleets of {SIZE:,} agents, at rest, asked by the client\n"
        "and over HTTP. `explain` is asked of 16 GB and 16 cores, of 500 cores and of 500 GB, which nobody has;\n"
        "`fit` of tasks of 4 GB and 2 cores; `summary` of all pools, unless everybody has one of his own.\n\n"
    )
    rows = [
        [f"{question.name}, {side}", *(_cell(figures, side, question.name, fleet=fleet) for fleet in FLEETS)]
        for question in INSIGHTS
        for side in ("index", "index through HTTP")
    ]
    yield from _table(("question", *FLEETS), (row for row in rows if any(row[1:])))


def _waiting(found: Waiting) -> Iterator[str]:
    yield (
        "\n## Waiting\n\nA search waits for what nobody has; then a heartbeat makes it possible. "
        f"{found.others:,} others\nwait, each for something else, in a fleet of {found.agents:,} agents; "
        f"{found.rounds} rounds. Milliseconds from the 202 on.\n\n"
    )
    yield from _table(
        ("in the index", "answered", "p99", "beyond the index"),
        [
            (
                f"{found.visible_p50_ms:g}",
                f"{found.answered_p50_ms:g}",
                f"{found.answered_p99_ms:g}",
                f"{found.beyond_p50_ms:g}",
            )
        ],
    )


def _ingestion(found: Ingestion) -> Iterator[str]:
    yield f"\n## Ingestion\n\nFleet mixed, {found.agents:,} agents, one process for each part.\n\n"
    yield from _table(
        ("way", "heartbeats", "a second", "CPU for each, µs"),
        ((each.name, f"{each.heartbeats:,}", f"{each.per_s:,.0f}", _cpu(each.cpu_us)) for each in found.rates),
    )
    yield (
        "\nThe API alone: the stream takes them and nobody reads. The whole way: sent at full speed, and the\n"
        "time runs until index and record have everything.\n\n"
    )
    yield from _table(
        ("from sending to visible, beside", "probes", "p50", "p99"),
        ((each.name, str(each.probes), f"{each.p50_ms:g}", f"{each.p99_ms:g}") for each in found.delays),
    )
    if (held := found.held) is not None:
        behind = ", ".join(f"{group} {count:,}" for group, count in held.behind.items())
        yield (
            f"\n{held.per_s:,.0f} heartbeats a second for {held.seconds:.0f} s, all workers running; entries "
            f"behind at the end: {behind}.\n\n"
        )
        yield from _table(
            ("lookup", "idle", "meanwhile"),
            (
                (name, *(_times(part[name].p50_ms, part[name].p99_ms) for part in (held.idle, held.loaded)))
                for name in sorted(held.idle)
            ),
        )
    yield "\n"
    yield from _table(
        ("Redis memory per agent", "bytes", "of these for searches within a pool"),
        (
            (
                f"{each.pools} pool{'s' if each.pools > 1 else ''}",
                f"{each.bytes:,.0f}",
                f"{each.pool_sets_bytes:,.0f}",
            )
            for each in found.memory
        ),
    )
    if (refill := found.refill) is not None:
        yield (
            f"\nFrom FLUSHALL to the first lookup that trusts the index again, from Postgres, {refill.agents:,} "
            f"agents: {refill.seconds:.1f} s.\nCPU for each agent, µs: {_cpu(refill.cpu_us)}.\n"
        )


def _loads(results: Results) -> Iterator[str]:
    yield "\n## Heartbeats under which lookups were measured\n\n"
    yield from _table(
        ("fleet", "agents", "store", "wanted a second", "sent a second", "most not yet applied"),
        (
            (
                load.fleet,
                f"{load.size:,}",
                load.store,
                f"{load.wanted_per_s:,.0f}",
                f"{load.sent_per_s:,.0f}",
                f"{load.behind:,}" if load.store == "Redis" else "",
            )
            for load in results.loads
            if load.size >= SIZE
        ),
    )


def _drawings(results: Results) -> dict[str, str]:
    figures = Figures(results)
    sizes = sorted({line.size for line in results.lines})
    drawn = [side for side in _SIDES if side not in {"bare FastAPI route", "SELECT 1", "ZINTER on the server"}]
    lines = {
        side: [
            (float(size), ms) for size in sizes if (ms := figures.p50_ms(side, TOP_10.name, size=size)) is not None
        ]
        for side in drawn
    }
    found: dict[str, str] = {}
    if any(lines.values()):
        found["sizes"] = plots.line_plot(
            "Top 10 over the size of the fleet, median",
            "Fleet mixed, at rest. The index stays flat; whoever filters grows with the fleet.",
            {side: line for side, line in lines.items() if line},
        )
    phases: tuple[tuple[str, Phase, str], ...] = (
        ("fleets", "at rest", f"Top 10 in fleets of {SIZE:,} agents, median at rest"),
        ("fleets-under-load", "under load", f"Top 10 in fleets of {SIZE:,} agents under heartbeats, p99"),
    )
    for name, phase, title in phases:
        groups = {fleet: _bars(figures, fleet, phase) for fleet in FLEETS}
        if groups := {fleet: bars for fleet, bars in groups.items() if bars}:
            found[name] = plots.bar_plot(title, "Index against the indexed tables of Postgres.", groups)
    return found


def _bars(figures: Figures, fleet: str, phase: Phase) -> dict[str, float]:
    bars = {}
    for side in _COMPARED:
        found = figures.get(side, main_question(fleet), fleet=fleet, phase=phase)
        if found is not None:
            bars[side] = found.p50_ms if phase == "at rest" else found.p99_ms
    return bars


def _cell(
    figures: Figures,
    side: str,
    question: str,
    *,
    fleet: str = "mixed",
    size: int = SIZE,
    phase: Phase = "at rest",
) -> str:
    found = figures.get(side, question, fleet=fleet, size=size, phase=phase)
    return "" if found is None else _times(found.p50_ms, found.p99_ms)


def _times(p50_ms: float, p99_ms: float) -> str:
    return f"{milliseconds(p50_ms)} ({milliseconds(p99_ms)})"


def _cpu(used_us: dict[str, float]) -> str:
    return ", ".join(f"{name} {microseconds:,.0f}" for name, microseconds in used_us.items() if microseconds >= 1)


def _verdict(met: bool | None) -> str:  # noqa: FBT001  the one thing it is about
    return "" if met is None else "met" if met else "**not met**"


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(titles) + " |\n"
    yield "|" + "|".join(" --- " for _ in titles) + "|\n"
    for row in rows:
        yield "| " + " | ".join(row) + " |\n"
