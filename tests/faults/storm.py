"""A storm: `kill -9` of random processes, one after the other, while a fleet reports at a steady rate."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from rich.table import Table

from tests.faults.fleet import Fleet, Reporter, Sent, agent_ids, quantile, took_ms, unanswered
from tests.faults.house import House
from tests.faults.nursery import Process
from tests.faults.settled import KEYS
from tests.faults.standalone import opened_house
from tests.servers import ValkeyServer, start_postgres, start_valkey
from tests.waiting import PATIENCE_S

Persistence = Literal["none", "everysec", "everysec-cut", "always"]

PARTS: Final = ("api", "api", "ingest", "ingest", "recorder", "recorder", "reaper")
_VICTIMS: Final = ("api", "ingest", "recorder")
_BATCH: Final = 50
_SINGLE_SHARE: Final = 0.05
"""Of all heartbeats, those that come one by one."""

_CUT_S: Final = 1.0
"""With `everysec` a power cut takes at most what was written within this time."""


class StormResult(msgspec.Struct, frozen=True):
    """What became of what was acknowledged.

    Attributes:
        persistence: Redis's, where it was killed as well; empty where it was not.
        killed: how often each was.
        acknowledged: heartbeats that were answered 202.
        lost: of these, those that neither took effect nor were superseded when their agents kept quiet.
        dead_letters: entries that were put aside.
        refused: heartbeats or batches that got another answer or none, by status; 0 is none.
        differences: between index, hashes, record and what was acknowledged, in the end.
        quiet_s: how long it took to become quiet in the end.
        lookups: how many a planner made meanwhile that asks another API where one gives no answer.
        unanswered: of these, how many got no answer at all; None where they were not counted.
    """

    persistence: str
    seconds: float
    agents: int
    killed: dict[str, int]
    acknowledged: int
    lost: int
    dead_letters: int
    refused: dict[int, int]
    differences: list[str]
    quiet_s: float
    lookups: int
    p99_ms: float
    slowest_ms: float
    unanswered: int | None = None

    @property
    def held(self) -> bool:
        """Whether all that was promised for this persistence was kept."""
        may_lose = self.persistence in {"none", "everysec-cut"}
        wrong = self.differences or self.dead_letters or self.unanswered
        return not wrong and (may_lose or not self.lost)

    @property
    def counted_unanswered(self) -> str:
        return "not counted" if self.unanswered is None else str(self.unanswered)

    @property
    def verdict(self) -> str:
        kills = sum(self.killed.values())
        lookups = f"{self.lookups:,} lookups, without an answer: {self.counted_unanswered}"
        return f"{self.acknowledged:,} acknowledged heartbeats, {kills} kills, {self.lost} lost; {lookups}"


def storm_table(result: StormResult) -> Table:
    table = Table(show_header=False)
    killed = ", ".join(f"{name} {times}" for name, times in result.killed.items())
    refused = ", ".join(f"{status or 'no answer'}: {times}" for status, times in result.refused.items())
    rows = {
        "killed": killed,
        "acknowledged": f"{result.acknowledged:,} of {result.agents:,} agents, "
        f"{result.acknowledged / result.seconds:,.0f} a second",
        "not acknowledged": refused or "none",
        "lost": str(result.lost),
        "dead letters": str(result.dead_letters),
        "quiet afterwards": f"{result.quiet_s:.1f} s",
        "differences": str(len(result.differences)),
        "lookups": f"{result.lookups:,}, p99 {result.p99_ms:.0f} ms, slowest {result.slowest_ms:.0f} ms",
        "lookups without an answer": result.counted_unanswered,
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


class Storm:
    """Over an open house with two of each part but the reaper."""

    def __init__(self, house: House, *, rate: float, seed: int) -> None:
        self._house = house
        self._chance = random.Random(seed)
        self._slots: list[tuple[str, Process, int]] = []
        ports = iter(house.ports)
        for name, process in zip(PARTS, house.processes, strict=True):
            self._slots.append((name, process, next(ports) if name == "api" else 0))
        batches = max(1, round(rate * (1 - _SINGLE_SHARE) / _BATCH))
        self._single_every_s = 1 / (rate * _SINGLE_SHARE)
        self._batched = [
            house.another_fleet(agent_ids(_BATCH, first=10_000 * (number + 1))) for number in range(batches)
        ]
        self._killed: Counter[str] = Counter()
        self._lost = 0
        self._verified: Counter[str] = Counter()

    def blow(
        self, seconds: float, *, redis: RedisDeath | None = None, tell: Callable[[float], None] = lambda _: None
    ) -> None:
        """Returns when it is over and everything runs again.

        Args:
            seconds: how long.
            redis: how Redis dies, if it does as well.
            tell: called with the seconds since the beginning, now and then.
        """
        victims = [*_VICTIMS, "redis"] if redis is not None else [*_VICTIMS]
        # The planner knows both APIs.
        self._house.move_callers()
        started = time.monotonic()
        self._start_reporting()
        while (passed_s := time.monotonic() - started) < seconds:
            tell(passed_s)
            time.sleep(self._chance.uniform(0.3, 2.0))
            victim = self._chance.choice(victims)
            self._killed[victim] += 1
            if victim == "redis" and redis is not None:
                self._kill_redis(redis)
            else:
                self._replace(victim)
        self._stop_reporting()
        for port in self._house.ports:
            self._house.until_answering(port)

    def result(self, *, persistence: str, seconds: float) -> StormResult:
        """Waits until it is quiet, and compares everything with everything."""
        house = self._house
        quiet_s = house.until_quiet(timeout_s=120)
        self._lost += self._count_lost()
        lookups = house.lookups.answers
        answered_ms = took_ms(lookups)
        refused: Counter[int] = Counter()
        for fleet in self._fleets:
            refused.update(fleet.refused)
        with house.valkey.client() as client:
            letters = int(client.xlen(KEYS.dead_letters))
        return StormResult(
            persistence=persistence,
            seconds=seconds,
            agents=sum(len(fleet.reporters) for fleet in self._fleets),
            killed=dict(sorted(self._killed.items())),
            acknowledged=sum(fleet.accepted for fleet in self._fleets),
            lost=self._lost,
            dead_letters=letters,
            refused=dict(sorted(refused.items())),
            differences=house.differences() if persistence in {"", "always"} else self._healed_differences(),
            quiet_s=round(quiet_s, 1),
            lookups=len(lookups),
            p99_ms=round(quantile(answered_ms, 0.99), 1),
            slowest_ms=round(max(answered_ms), 1),
            unanswered=len(unanswered(lookups)),
        )

    @property
    def _fleets(self) -> list[Fleet]:
        return [self._house.fleet, *self._batched]

    def _healed_differences(self) -> list[str]:
        """After what was lost may be: every agent's next heartbeat makes up for it."""
        for fleet in self._batched:
            fleet.report_batch()
        self._house.fleet.report()
        self._house.until_quiet()
        return self._house.differences()

    def _start_reporting(self) -> None:
        self._house.fleet.start(every_s=self._single_every_s)
        for fleet in self._batched:
            fleet.start(every_s=1.0, batches=True)
            # Not all at the same moment.
            time.sleep(1.0 / len(self._batched))

    def _stop_reporting(self) -> None:
        for fleet in self._fleets:
            fleet.stop()

    def _replace(self, name: str) -> None:
        slot = self._chance.choice([at for at, (part, _, _) in enumerate(self._slots) if part == name])
        for at, (part, _, port) in enumerate(self._slots):
            if name == part == "api" and at != slot:
                # Without any API nobody could answer a lookup.
                self._house.until_answering(port)
        self._slots[slot][1].kill()
        process = self._house.start(name)
        self._slots[slot] = name, process, self._house.ports[-1] if name == "api" else 0
        if name == "api":
            self._house.ports[:] = [port for _, _, port in self._slots if port]
            self._house.move_callers()

    def _kill_redis(self, redis: RedisDeath) -> None:
        redis.kill()
        self._stop_reporting()
        redis.start()
        self._house.until(self._index_answers, what="answers from the index", timeout_s=120)
        self._house.until_quiet(timeout_s=120)
        self._lost += self._count_lost()
        self._start_reporting()

    def _index_answers(self) -> bool:
        try:
            answer = self._house.get("/api/v1/agents/available-capacity?limit=1")
        except OSError:
            return False
        return answer.status == 200 and answer.headers.get("x-capacity-source", "index") == "index"

    def _count_lost(self) -> int:
        """Acknowledged since the last count, and newer than what the index shows of the agent."""
        reporters = [reporter for fleet in self._fleets for reporter in fleet.reporters]
        with self._house.valkey.client() as client:
            pipeline = client.pipeline(transaction=False)
            for reporter in reporters:
                pipeline.hmget(KEYS.agent(reporter.agent_id), "boot_id", "seq")
            shown: Any = pipeline.execute()
        lost = 0
        for reporter, (boot_id, seq) in zip(reporters, shown, strict=True):
            known = Sent(boot_id, int(seq)) if boot_id else None
            lost += self._newer(reporter, known)
            self._verified[reporter.agent_id] = len(reporter.taken)
        return lost

    def _newer(self, reporter: Reporter, known: Sent | None) -> int:
        unverified = reporter.taken[self._verified[reporter.agent_id] :]
        return sum(known is None or sent.seq > known.seq for sent in unverified)


class RedisDeath:
    """`kill -9` of Redis; as a power cut, what was written to its file within the last second goes with it."""

    def __init__(self, server: ValkeyServer, *, power_cut: bool) -> None:
        self._server = server
        self._power_cut = power_cut
        self._sizes: list[tuple[float, int]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="file-size", daemon=True)
        if power_cut:
            self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(PATIENCE_S)

    def kill(self) -> None:
        died_at = time.monotonic()
        self._server.kill()
        if self._power_cut:
            before = [size for at, size in self._sizes if at < died_at - _CUT_S]
            # What was there when it began to be watched is older than that.
            os.truncate(self._file(), before[-1] if before else self._sizes[0][1])
            self._sizes.clear()

    def start(self) -> None:
        self._server.start()

    def _file(self) -> Path:
        [path] = self._server.directory.glob("appendonlydir/*.incr.aof")
        return path

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            if self._server.running:
                self._sizes.append((time.monotonic(), self._file().stat().st_size))


def run_storm(
    seconds: float,
    *,
    rate: float,
    seed: int,
    persistence: Persistence | None,
    tell: Callable[[float], None] = lambda _: None,
) -> StormResult:
    """On servers of its own; Redis dies as well where a persistence is given."""
    with ExitStack() as closing:
        valkey = closing.enter_context(_redis(persistence))
        postgres = closing.enter_context(start_postgres())
        house = closing.enter_context(opened_house(valkey, postgres, PARTS, agents=_BATCH))
        storm = Storm(house, rate=rate, seed=seed)
        death = None
        if persistence is not None:
            death = RedisDeath(valkey, power_cut=persistence == "everysec-cut")
            closing.callback(death.close)
        storm.blow(seconds, redis=death, tell=tell)
        return storm.result(persistence=persistence or "", seconds=seconds)


@contextmanager
def _redis(persistence: Persistence | None) -> Iterator[ValkeyServer]:
    kept = persistence not in {None, "none"}
    fsync = "always" if persistence == "always" else "everysec"
    config = [f"appendfsync {fsync}", "auto-aof-rewrite-percentage 0"] if kept else []
    with start_valkey(appendonly=kept, config=config) as server:
        yield server
