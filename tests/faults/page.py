"""The figures of docs/reliability.md: kept in docs/reliability.json, written into the page as tables."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from tests.faults.recovery import RecoveryResult
from tests.faults.rows import ROWS
from tests.faults.running import RowsResult
from tests.faults.simulation import Simulated
from tests.faults.storm import StormResult

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
_BEGIN: Final = "<!-- {}: written by scripts/faults -->\n"
_END: Final = "<!-- end -->\n"


class RowFigures(msgspec.Struct, frozen=True):
    """Of one row; the lookups' times are the worst of its tests, None where none were made.

    Attributes:
        unanswered: lookups that got no answer at all; None where they were not counted.
    """

    held: bool
    tests: int
    p99_ms: float | None
    slowest_ms: float | None
    unanswered: int | None = None


class RowsFigures(msgspec.Struct, frozen=True):
    measured: str
    minutes: float
    rows: dict[int, RowFigures]

    @classmethod
    def of(cls, result: RowsResult) -> RowsFigures:
        rows = {}
        for row in result.rows:
            p99 = [test.p99_ms for test in row.tests if test.p99_ms is not None]
            slowest = [test.slowest_ms for test in row.tests if test.slowest_ms is not None]
            unanswered = sum(test.unanswered for test in row.tests)
            rows[row.row] = RowFigures(
                row.held,
                len(row.tests),
                max(p99, default=None),
                max(slowest, default=None),
                unanswered if p99 or unanswered else None,
            )
        return cls(measured=_now(), minutes=round(result.took_s / 60, 1), rows=rows)


class SimulationFigures(msgspec.Struct, frozen=True):
    measured: str
    minutes: float
    seeds: int
    agent_hours: int
    heartbeats: int
    searches: int
    compared: int
    faults: dict[str, int]
    broken: int
    false_offline: int
    false_online: int

    @classmethod
    def of(cls, result: Simulated) -> SimulationFigures:
        return cls(
            measured=_now(),
            minutes=round(result.took_s / 60, 1),
            seeds=len(result.histories),
            agent_hours=round(result.agent_hours),
            heartbeats=result.heartbeats,
            searches=result.lookups,
            compared=result.checks,
            faults=dict(sorted(result.faults.items())),
            broken=sum(len(history.broken) for history in result.histories),
            false_offline=sum(history.false_offline for history in result.histories),
            false_online=sum(history.false_online for history in result.histories),
        )


class StormFigures(msgspec.Struct, frozen=True):
    measured: str
    result: StormResult


class RecoveryFigures(msgspec.Struct, frozen=True):
    measured: str
    result: RecoveryResult


class Figures(msgspec.Struct):
    """Each part as it was last measured; storms by what Redis kept on disk, empty where it was not killed."""

    rows: RowsFigures | None = None
    simulation: SimulationFigures | None = None
    storms: dict[str, StormFigures] = {}
    recovery: RecoveryFigures | None = None


def read_figures(docs: Path = DOCS) -> Figures:
    path = docs / "reliability.json"
    return msgspec.json.decode(path.read_bytes(), type=Figures) if path.exists() else Figures()


def write_figures(result: RowsResult | Simulated | StormResult | RecoveryResult, *, docs: Path = DOCS) -> Path:
    """Keeps what was measured and writes the page anew; returns the page."""
    figures = read_figures(docs)
    match result:
        case RowsResult():
            figures.rows = RowsFigures.of(result)
        case Simulated():
            figures.simulation = SimulationFigures.of(result)
        case StormResult():
            figures.storms[result.persistence] = StormFigures(_now(), result)
        case RecoveryResult():
            figures.recovery = RecoveryFigures(_now(), result)
    (docs / "reliability.json").write_bytes(msgspec.json.format(msgspec.json.encode(figures)) + b"\n")
    page = docs / "reliability.md"
    page.write_text(with_figures(page.read_text("utf-8"), figures), "utf-8")
    return page


def with_figures(text: str, figures: Figures) -> str:
    """The page with every table as the figures have it."""
    for name, lines in _sections(figures).items():
        begin = _BEGIN.format(name)
        before, found, rest = text.partition(begin)
        _, end, after = rest.partition(_END)
        if not (found and end):
            raise ValueError(f"docs/reliability.md has no place for {name}")
        text = before + begin + "\n" + "\n".join(lines) + "\n\n" + end + after
    return text


def _sections(figures: Figures) -> dict[str, list[str]]:
    return {
        "rows": list(_rows(figures.rows)),
        "simulation": list(_simulation(figures.simulation)),
        "storm": list(_storm(figures.storms.get(""))),
        "persistence": list(_persistence(figures.storms)),
        "recovery": list(_recovery(figures.recovery)),
    }


def _rows(figures: RowsFigures | None) -> Iterator[str]:
    if figures is not None:
        held = sum(row.held for row in figures.rows.values())
        tests = sum(row.tests for row in figures.rows.values())
        verdict = f"{len(figures.rows)} {'row' if len(figures.rows) == 1 else 'rows'}, {held} held"
        yield f"{verdict}: {tests} tests in {figures.minutes:g} minutes, {figures.measured}."
        yield ""
    yield from _table("row", "fault", "what happens", "held", "lookups p99", "slowest", "no answer")
    for number, row in ROWS.items():
        seen = figures.rows.get(number) if figures is not None else None
        if seen is None:
            yield _row(str(number), row.fault, row.promise, "", "", "", "")
        else:
            shown = "yes" if seen.held else "**no**"
            times = (_ms(seen.p99_ms), _ms(seen.slowest_ms))
            yield _row(str(number), row.fault, row.promise, shown, *times, _count(seen.unanswered))


def _simulation(figures: SimulationFigures | None) -> Iterator[str]:
    if figures is None:
        yield "Not measured yet."
        return
    yield f"{figures.minutes:g} minutes, {figures.measured}."
    yield ""
    yield from _table("", "")
    yield _row("seeds", f"{figures.seeds:,}")
    yield _row("simulated agent-hours", f"{figures.agent_hours:,}")
    yield _row("heartbeats", f"{figures.heartbeats:,}")
    yield _row("searches", f"{figures.searches:,}")
    yield _row("faults", ", ".join(f"{kind} {count:,}" for kind, count in figures.faults.items()))
    yield _row("times that all was quiet and everything was compared", f"{figures.compared:,}")
    yield _row("broken invariants", f"{figures.broken:,}")
    yield _row("agents falsely declared offline or left out of a search", f"{figures.false_offline:,}")
    yield _row("agents falsely shown by a search", f"{figures.false_online:,}")


def _storm(figures: StormFigures | None) -> Iterator[str]:
    if figures is None:
        yield "Not measured yet."
        return
    result = figures.result
    yield f"{result.seconds:g} seconds, {figures.measured}."
    yield ""
    yield from _table("", "")
    yield _row("killed", ", ".join(f"{name} {times}" for name, times in result.killed.items()))
    yield _row(
        "acknowledged heartbeats", f"{result.acknowledged:,}, {result.acknowledged / result.seconds:,.0f} a second"
    )
    yield _row("of these, neither applied nor superseded", f"{result.lost:,}")
    yield _row("dead letters", f"{result.dead_letters:,}")
    yield _row(
        "differences between index, hashes, record and what was acknowledged", f"{len(result.differences):,}"
    )
    yield _row("quiet after the last heartbeat", f"{result.quiet_s:.1f} s")
    yield _row("lookups", f"{result.lookups:,}, p99 {_ms(result.p99_ms)}, slowest {_ms(result.slowest_ms)}")
    yield _row("of these, without any answer", _count(result.unanswered))


_MODES: Final = {
    "always": ("`appendfsync always`", "`kill -9`"),
    "everysec": ("`appendfsync everysec`", "`kill -9`"),
    "everysec-cut": ("`appendfsync everysec`", "power cut"),
    "none": ("no persistence", "`kill -9`"),
}


def _persistence(storms: dict[str, StormFigures]) -> Iterator[str]:
    yield from _table(
        "Redis keeps", "Redis dies by", "faults", "of them Redis", "acknowledged", "lost", "measured"
    )
    for mode, (keeps, dies) in _MODES.items():
        storm = storms.get(mode)
        if storm is None:
            yield _row(keeps, dies, "", "", "", "", "not yet")
            continue
        result = storm.result
        yield _row(
            keeps,
            dies,
            f"{sum(result.killed.values()):,}",
            f"{result.killed.get('redis', 0):,}",
            f"{result.acknowledged:,}",
            f"{result.lost:,}",
            storm.measured,
        )


def _recovery(figures: RecoveryFigures | None) -> Iterator[str]:
    if figures is None:
        yield "Not measured yet."
        return
    flush, outage = figures.result.flush, figures.result.outage
    yield f"{figures.measured}."
    yield ""
    yield from _table("", "`FLUSHALL`", "ten minutes without Postgres")
    yield _row("agents", f"{flush.agents:,}", f"{outage.agents:,}")
    yield _row("entries that waited", "", f"{outage.waited:,}")
    yield _row("whole again after", f"{flush.index_s:.1f} s", f"{outage.caught_up_s:.1f} s")
    yield _row("agents or rows that differ afterwards", f"{flush.differences:,}", f"{outage.differences:,}")
    yield _row("heartbeats refused", "", f"{outage.refused:,}")
    yield _row("lookups meanwhile", f"{flush.lookups.lookups:,}", f"{outage.lookups.lookups:,}")
    yield _row("of these, refused", f"{flush.lookups.refused:,}", f"{outage.lookups.refused:,}")
    yield _row("without any answer", f"{flush.lookups.unanswered:,}", f"{outage.lookups.unanswered:,}")
    yield _row("p99", _ms(flush.lookups.p99_ms), _ms(outage.lookups.p99_ms))
    yield _row("slowest", _ms(flush.lookups.slowest_ms), _ms(outage.lookups.slowest_ms))


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, Python {platform.python_version()}"


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f} ms" if value >= 10 else f"{value:.1f} ms"


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _table(*titles: str) -> Iterable[str]:
    return _row(*titles), _row(*("---" for _ in titles))


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
