"""Lookups, measured: one cell is a fleet of a size, with every side at rest and while heartbeats pour in."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing
from typing import Final, Literal

import msgspec

from app.index.keys import GROUP_INDEX
from tests.bench import pressure
from tests.bench.cores import apart_and_awake
from tests.bench.filling import fill
from tests.bench.fleets import Fleet
from tests.bench.insights import asked_of
from tests.bench.measure import Measurement, Summary, until
from tests.bench.oracle import Oracle
from tests.bench.peers import Indexed, LoadAll, Postgres, SelectOne
from tests.bench.pressure import Source, StreamSource, UpdateSource
from tests.bench.programs import Groups, worker
from tests.bench.questions import EVERYTHING, INSIGHT_KINDS, TOP_10, Question
from tests.bench.sides import ClientIntersection, IndexSide, Ping, ServerIntersection, Side
from tests.bench.tables import BTREE, GIST, TABLES, PeerTable
from tests.bench.web import HttpFloor, HttpSide
from tests.servers import ValkeyServer

Phase = Literal["at rest", "under load"]

PEERS_UP_TO: Final = 100_000
"""Above this size only the index and the indexed tables are measured."""

_SETTLE_S: Final = 0.4


class Effort(msgspec.Struct, frozen=True, kw_only=True):
    """How long to look.

    Attributes:
        rounds: at rest; `load_rounds`: phases of heartbeats per store.
        block_s: how long one side is asked one question before the next side's turn.
        load_s: how long each phase of heartbeats is measured; 0: not at all.
    """

    rounds: int
    block_s: float
    load_rounds: int
    load_s: float


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """What one side needed for one question."""

    fleet: str
    size: int
    phase: Phase
    side: str
    question: str
    summary: Summary


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """The heartbeats that one store was given while it was measured.

    Attributes:
        behind: entries not yet applied when the sending stopped, largest of all phases.
    """

    fleet: str
    size: int
    store: str
    wanted_per_s: float
    sent_per_s: float
    behind: int


class Cell(msgspec.Struct, frozen=True):
    lines: list[Line]
    loads: list[Load]
    checked: int


class Grounds(msgspec.Struct, frozen=True, kw_only=True):
    """The servers and processes that serve every cell."""

    valkey: ValkeyServer
    postgres: Postgres
    api_port: int
    environment: dict[str, str]
    """That of Headroom's processes."""
    pool: ProcessPoolExecutor
    with_gist: bool
    stream_source: StreamSource
    update_sources: dict[str, UpdateSource]
    """By table."""


class _Store(msgspec.Struct, frozen=True, kw_only=True):
    """One store's sides, its oracle, and the source of its heartbeats.

    Attributes:
        behind: how many heartbeats are sent but not applied.
        settle: returns once all are.
    """

    name: str
    oracle: Oracle
    sides: list[Side]
    source: Source
    behind: Callable[[], int] = lambda: 0
    settle: Callable[[], None] = lambda: None


def measure_cell(
    grounds: Grounds,
    fleet: Fleet,
    effort: Effort,
    questions: Sequence[Question] = EVERYTHING,
    *,
    tell: Callable[[str], None],
) -> Cell:
    """Loads the fleet everywhere and measures every side.

    Raises:
        WrongAnswerError: a side answered wrongly; nothing measured counts then.
    """
    with ExitStack() as closing:
        tell("loading")
        bench = _Bench(grounds, fleet, effort, questions, closing)
        tell("at rest")
        with apart_and_awake():
            rest = bench.at_rest()
        measurements: list[tuple[Phase, Measurement]] = [("at rest", rest)]
        loads: list[Load] = []
        if effort.load_s:
            tell("under load")
            under_load, loads = bench.under_load()
            measurements.append(("under load", under_load))
        lines = [
            Line(fleet=fleet.name, size=fleet.size, phase=phase, side=side, question=question, summary=summary)
            for phase, measurement in measurements
            for (side, question), summary in measurement.summaries().items()
        ]
        return Cell(lines, loads, sum(measurement.checked for _, measurement in measurements))


def load_per_s(size: int) -> float:
    """Heartbeats a second of a fleet that reports every 30 s, up to what this machine can send and apply."""
    return min(size / pressure.INTERVAL_S, pressure.MOST_PER_S)


class _Bench:
    """One fleet in all stores, and the sides that ask them; `closing` ends what it opens."""

    def __init__(
        self, grounds: Grounds, fleet: Fleet, effort: Effort, questions: Sequence[Question], closing: ExitStack
    ) -> None:
        self._grounds = grounds
        self._fleet = fleet
        self._effort = effort
        self._questions = [question for question in questions if question.kind not in INSIGHT_KINDS]
        self._insights = asked_of(fleet, questions)
        self._closing = closing
        tables = [table for table in TABLES if self._compares(table)]
        grounds.valkey.flush()
        fill(grounds.valkey.url, fleet, pool=grounds.pool)
        grounds.postgres.load(fleet, tables)
        oracle = Oracle(fleet, self._questions)
        # The fleet stays for the whole cell; without this each collection would walk all of it.
        gc.collect()
        gc.freeze()
        closing.callback(gc.unfreeze)
        for source in (grounds.stream_source, *grounds.update_sources.values()):
            source.start_over()
        self._redis = self._redis_store(oracle)
        self._stores = [self._redis, *(self._postgres_store(oracle.fork(), table) for table in tables)]
        # They hold Redis for so long that among the others they would be measured as well.
        self._intersections = self._intersecting_sides(oracle) if fleet.size <= PEERS_UP_TO else []

    @property
    def _sides(self) -> list[Side]:
        return [*(side for store in self._stores for side in store.sides), *self._intersections]

    @property
    def _oracles(self) -> dict[str, Oracle]:
        of_stores = {side.name: store.oracle for store in self._stores for side in store.sides}
        return of_stores | {side.name: self._redis.oracle for side in self._intersections}

    def at_rest(self) -> Measurement:
        oracles = self._oracles
        measurement = Measurement(oracles, block_s=self._effort.block_s)
        measurement.warm_up(self._sides, self._questions)
        for _ in range(self._effort.rounds):
            measurement.begin_round()
            measurement.turn(self._sides, self._questions)
            measurement.check()
        self._tell_of_the_whole(measurement)
        top_10 = [question for question in self._questions if question.name == TOP_10.name]
        if top_10 and self._fleet.size <= PEERS_UP_TO:
            with closing(LoadAll(self._grounds.postgres)) as side:
                oracles[side.name] = self._stores[-1].oracle
                measurement.warm_up([side], top_10)
                for _ in range(min(3, self._effort.rounds)):
                    measurement.begin_round()
                    measurement.turn([side], top_10)
                    measurement.check()
        return measurement

    def _tell_of_the_whole(self, measurement: Measurement) -> None:
        """Questions that only the index answers, between its own lookup and the floor."""
        sides = [side for side in self._redis.sides if isinstance(side, Ping | IndexSide | HttpSide)]
        measurement.warm_up(sides, self._insights)
        for _ in range(self._effort.rounds):
            measurement.begin_round()
            measurement.turn(sides, self._insights)
            measurement.check()

    def under_load(self) -> tuple[Measurement, list[Load]]:
        effort = self._effort
        measurement = Measurement(self._oracles, block_s=effort.block_s)
        phases = {store.name: _Phases(store, self._fleet) for store in self._stores}
        with worker("ingest", self._grounds.environment):
            measurement.warm_up(self._sides, self._questions)
            for _ in range(effort.load_rounds):
                measurement.begin_round()
                for store in self._stores:
                    phases[store.name].run(measurement, store.sides, self._questions, effort.load_s)
            searches = [question for question in self._questions if question.kind != "one"]
            for _ in range(min(2, effort.load_rounds) if self._intersections else 0):
                measurement.begin_round()
                phases[self._redis.name].run(measurement, self._intersections, searches, 0.0)
        return measurement, [phases[store.name].load() for store in self._stores]

    def _compares(self, table: PeerTable) -> bool:
        if table is GIST:
            return self._grounds.with_gist
        return table is BTREE or self._fleet.size <= PEERS_UP_TO

    def _redis_store(self, oracle: Oracle) -> _Store:
        url, port = self._grounds.valkey.url, self._grounds.api_port
        sides: list[Side] = [
            Ping(url),
            IndexSide(url, oracle.asked_ids),
            HttpFloor(port),
            HttpSide(port, oracle.asked_ids),
        ]
        groups = Groups(url)
        for side in sides:
            self._closing.callback(side.close)
        self._closing.callback(groups.close)

        def settle() -> None:
            groups.until_drained(GROUP_INDEX)
            groups.trim()

        return _Store(
            name="Redis",
            oracle=oracle,
            sides=sides,
            source=self._grounds.stream_source,
            behind=lambda: groups.behind(GROUP_INDEX),
            settle=settle,
        )

    def _postgres_store(self, oracle: Oracle, table: PeerTable) -> _Store:
        postgres = self._grounds.postgres
        sides: list[Side] = [Indexed(postgres, table, oracle.asked_ids)]
        if table is BTREE:
            sides.insert(0, SelectOne(postgres))
        return _Store(
            name=table.side,
            oracle=oracle,
            sides=sides,
            source=self._grounds.update_sources[table.name],
        )

    def _intersecting_sides(self, oracle: Oracle) -> list[Side]:
        url = self._grounds.valkey.url
        sides: list[Side] = [
            ClientIntersection(url, oracle.asked_ids),
            ServerIntersection(url, oracle.asked_ids),
        ]
        for side in sides:
            self._closing.callback(side.close)
        return sides


class _Phases:
    """The phases of heartbeats of one store."""

    def __init__(self, store: _Store, fleet: Fleet) -> None:
        self._store = store
        self._fleet = fleet
        self._wanted_per_s = load_per_s(fleet.size)
        self._sent = 0
        self._took_s = 0.0
        self._behind = 0

    def run(
        self, measurement: Measurement, sides: Sequence[Side], questions: Sequence[Question], load_s: float
    ) -> None:
        store, source = self._store, self._store.source
        longest_s = _SETTLE_S + load_s + 3 * measurement.turn_s(sides, questions) + 1.0
        source.prepare(self._fleet, math.ceil(self._wanted_per_s * longest_s), per_s=self._wanted_per_s)
        before = source.sent
        started = time.perf_counter()
        source.go()
        time.sleep(_SETTLE_S)
        for _ in until(started + _SETTLE_S + load_s):
            measurement.turn(sides, questions)
        sent = source.stop()
        self._behind = max(self._behind, store.behind())
        self._sent += source.sent - before
        self._took_s += sent.at[-1] - sent.at[0]
        store.settle()
        measurement.check(sent)
        # Everything is applied now, and there is one right answer again.
        store.oracle.advance_to(source.sent)
        measurement.probe(sides, questions)

    def load(self) -> Load:
        return Load(
            fleet=self._fleet.name,
            size=self._fleet.size,
            store=self._store.name,
            wanted_per_s=round(self._wanted_per_s, 1),
            sent_per_s=round(self._sent / max(1e-9, self._took_s), 1),
            behind=self._behind,
        )
