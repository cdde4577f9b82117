"""What the benchmark must show, and whether a run shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import msgspec

from tests.bench.fleets import FLEETS
from tests.bench.ingestion import Ingestion
from tests.bench.lookups import Phase
from tests.bench.measure import Summary
from tests.bench.questions import (
    EXPLAIN,
    EXPLAIN_CORES,
    EXPLAIN_VRAM,
    TOP_10,
    TOP_10_FOUR_BANDS,
    TOP_10_ONE_BAND,
)
from tests.bench.results import Results
from tests.bench.waiting import Waiting

SIZE: Final = 100_000

_TOP_10S: Final = (TOP_10.name, TOP_10_ONE_BAND.name, TOP_10_FOUR_BANDS.name)


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One line: what, what is asked for, what was measured; `met` is None where this run did not measure it."""

    what: str
    asked: str
    measured: str = "not measured"
    met: bool | None = None


class Figures:
    """A run's lookups by what they measured."""

    def __init__(self, results: Results) -> None:
        self._found = {
            (line.fleet, line.size, line.phase, line.side, line.question): line.summary for line in results.lines
        }

    def get(
        self, side: str, question: str, *, fleet: str = "mixed", size: int = SIZE, phase: Phase = "at rest"
    ) -> Summary | None:
        return self._found.get((fleet, size, phase, side, question))

    def p50_ms(self, side: str, question: str, *, fleet: str = "mixed", size: int = SIZE) -> float | None:
        """At rest."""
        found = self.get(side, question, fleet=fleet, size=size)
        return None if found is None else found.p50_ms

    def p99_ms(self, side: str, question: str, *, fleet: str = "mixed", size: int = SIZE) -> float | None:
        """Under load."""
        found = self.get(side, question, fleet=fleet, size=size, phase="under load")
        return None if found is None else found.p99_ms


def targets(results: Results) -> list[Target]:
    figures = Figures(results)
    return [
        *_at_most(figures),
        *_insights(figures),
        *_against_peers(figures),
        *_ingestion(results.ingestion),
        *_waiting(results.waiting),
    ]


def main_question(fleet: str) -> str:
    """Just below 12 cores is where everybody is in the fleet of that name; elsewhere a rung is asked for."""
    return TOP_10_ONE_BAND.name if fleet == "just-below" else TOP_10.name


def _at_most(figures: Figures) -> Iterator[Target]:
    def against_ping(question: str) -> float | None:
        return _ratio(figures.p50_ms("index", question), figures.p50_ms("PING", question))

    yield _below("client lookup on a rung, against PING", 2.5, [("", against_ping(TOP_10.name))])
    yield _below(
        "client lookup between rungs, against PING",
        4.0,
        [(name, against_ping(name)) for name in (TOP_10_ONE_BAND.name, TOP_10_FOUR_BANDS.name)],
    )
    yield _below(
        "worst fleet, against the mixed one",
        1.5,
        [
            (f"{fleet}, {name}", _ratio(figures.p50_ms("index", name, fleet=fleet), figures.p50_ms("index", name)))
            for fleet in FLEETS
            for name in _TOP_10S
            if fleet != "mixed"
        ],
    )
    yield _below(
        "1,000,000 agents, against 10,000",
        1.5,
        [
            (
                f"{fleet}, {name}",
                _ratio(
                    figures.p50_ms("index", name, fleet=fleet, size=1_000_000),
                    figures.p50_ms("index", name, fleet=fleet, size=10_000),
                ),
            )
            for fleet in ("mixed", "unlucky")
            for name in _TOP_10S
        ],
    )
    yield _below(
        "p99 of the client lookup under heartbeats, against p99 of PING then",
        4.0,
        [
            (name, _ratio(figures.p99_ms("index", name), figures.p99_ms("PING", name)))
            for name in (TOP_10.name, TOP_10_FOUR_BANDS.name)
        ],
    )
    yield _below(
        "HTTP lookup, against the bare FastAPI route",
        2.0,
        [
            (
                "",
                _ratio(
                    figures.p50_ms("index through HTTP", TOP_10.name),
                    figures.p50_ms("bare FastAPI route", TOP_10.name),
                ),
            )
        ],
    )


def _insights(figures: Figures) -> Iterator[Target]:
    search = figures.p50_ms("index", TOP_10.name)
    yield _below(
        "explain in every fleet, against a search for the ten best in the mixed one",
        10.0,
        [
            (f"{fleet}, {name}", _ratio(figures.p50_ms("index", name, fleet=fleet), search))
            for fleet in FLEETS
            for name in (EXPLAIN.name, EXPLAIN_CORES.name, EXPLAIN_VRAM.name)
        ],
    )


def _against_peers(figures: Figures) -> Iterator[Target]:
    def faster(side: str, fleet: str = "mixed") -> float | None:
        question = main_question(fleet)
        return _ratio(figures.p50_ms(side, question, fleet=fleet), figures.p50_ms("index", question, fleet=fleet))

    def faster_p99(side: str, fleet: str) -> float | None:
        question = main_question(fleet)
        return _ratio(figures.p99_ms(side, question, fleet=fleet), figures.p99_ms("index", question, fleet=fleet))

    yield _above("faster than client-side intersection", 150, [("", faster("client-side intersection"))])
    yield _above("faster than Postgres with a JSON filter", 400, [("", faster("Postgres JSON filter"))])
    yield _above("faster than loading all and filtering in Python", 3_000, [("", faster(LOAD_ALL))])
    for fleet in ("unlucky", "just-below"):
        yield _above(
            f"faster than Postgres btree, fleet {fleet}", 10, [("", faster("Postgres btree", fleet=fleet))]
        )
    yield _above(
        "faster than Postgres GiST at rest, every fleet",
        1.2,
        [(fleet, faster("Postgres GiST", fleet)) for fleet in FLEETS],
    )
    yield _above(
        "p99 under heartbeats, faster than Postgres GiST, every fleet",
        2,
        [(fleet, faster_p99("Postgres GiST", fleet)) for fleet in FLEETS],
    )


LOAD_ALL: Final = "load all, filter in Python"


def _ingestion(found: Ingestion | None) -> Iterator[Target]:
    if found is None or found.agents != SIZE:
        return
    one_pool, twenty_pools = found.memory
    for name, most, used in (
        ("without what a pool filter costs", 2_500, one_pool.bytes - one_pool.pool_sets_bytes),
        ("with 20 pools", 3_500, twenty_pools.bytes),
    ):
        yield Target(
            what=f"Redis memory per agent, {name}",
            asked=f"≤ {most / 1000:.1f} KB",
            measured=f"{used / 1000:.2f} KB",
            met=used <= most,
        )
    if found.refill is not None:
        yield Target(
            what="refill of 100,000 agents after FLUSHALL, from Postgres",
            asked="≤ 8 s",
            measured=f"{found.refill.seconds:.1f} s",
            met=found.refill.seconds <= 8,
        )
    for ending, least in (("every value changing", 4_000), ("values unchanged", 10_000)):
        for rate in found.rates:
            if rate.name.endswith(ending):
                yield Target(
                    what=f"ingestion, {ending}: stream to index and record",
                    asked=f"≥ {least:,}/s",
                    measured=f"{rate.per_s:,.0f}/s",
                    met=rate.per_s >= least,
                )
    if (held := found.held) is not None:
        slower = max(held.loaded[name].p50_ms / held.idle[name].p50_ms for name in held.idle if "index" in name)
        behind = max(held.behind.values())
        yield Target(
            what="3,333 heartbeats/s held, all workers running: lookups keep their figures",
            asked="≤ 1 s behind, p50 ≤ 1.5x",
            measured=f"{behind / held.per_s:.2f} s behind, p50 {slower:.2f}x",
            met=behind <= held.per_s and slower <= 1.5,
        )


def _waiting(found: Waiting | None) -> Iterator[Target]:
    if found is not None:
        yield Target(
            what=f"answer of a waiting search among {found.others:,} others, beyond the visibility delay",
            asked="≤ 20 ms",
            measured=f"{found.beyond_p50_ms:.1f} ms",
            met=found.beyond_p50_ms <= 20,
        )


def _ratio(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one / other


def _below(what: str, most: float, ratios: Iterable[tuple[str, float | None]]) -> Target:
    return _judged(what, f"≤ {most:g}x", ratios, worst=max, met=lambda ratio: ratio <= most)


def _above(what: str, least: float, ratios: Iterable[tuple[str, float | None]]) -> Target:
    return _judged(what, f"≥ {least:,g}x", ratios, worst=min, met=lambda ratio: ratio >= least)


def _judged(
    what: str,
    asked: str,
    ratios: Iterable[tuple[str, float | None]],
    *,
    worst: Callable[..., tuple[str, float]],
    met: Callable[[float], bool],
) -> Target:
    """Judges the worst of them, and names it where there are several."""
    known = [(name, ratio) for name, ratio in ratios if ratio is not None]
    if not known:
        return Target(what=what, asked=asked)
    name, ratio = worst(known, key=lambda each: each[1])
    shown = f"{ratio:,.0f}x" if ratio >= 100 else f"{ratio:.1f}x" if ratio >= 10 else f"{ratio:.2f}x"
    return Target(
        what=what, asked=asked, measured=f"{shown} ({name})" if len(known) > 1 else shown, met=met(ratio)
    )
