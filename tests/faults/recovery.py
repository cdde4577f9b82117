"""How long it takes to be whole again: after FLUSHALL, and after Postgres was away, with a large fleet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

import msgspec
from rich.table import Table

from tests.faults.fleet import Fleet, Lookup, agent_ids, quantile, took_ms, unanswered
from tests.faults.house import EVERYTHING, House
from tests.faults.standalone import opened_house
from tests.servers import PostgresServer, start_postgres, start_valkey

_BATCH: Final = 1_000
_AT_FIRST: Final = 20
_SEARCH: Final = "/api/v1/agents/available-capacity?min_gpu_vram_gb=0&min_cpu_cores=1&limit=1"
_PATIENT: Final = {"offline_after_s": 3600.0, "heartbeat_interval_s": 30.0}
"""A fleet of this size reports as fast as one machine can, not every 30 s: nobody may fall silent meanwhile."""

ROUNDS_OF_TEN_MINUTES: Final = 20

Tell = Callable[[str], None]


class Answered(msgspec.Struct, frozen=True):
    """The lookups during a fault, and of these: refused ones, and those without any answer."""

    lookups: int
    refused: int
    unanswered: int
    p99_ms: float
    slowest_ms: float


class FlushResult(msgspec.Struct, frozen=True):
    """After FLUSHALL.

    Attributes:
        agents: how many there are.
        index_s: until lookups came from the index again, which is when all agents are back.
        found: agents that a search counts then.
        differences: between index, hashes, record and what was acknowledged, once quiet.
    """

    agents: int
    index_s: float
    found: int
    differences: int
    lookups: Answered


class OutageResult(msgspec.Struct, frozen=True):
    """After Postgres was away for as many heartbeats as a fleet sends in ten minutes.

    Attributes:
        waited: entries that had to wait for the recorder.
        refused: heartbeats that were not acknowledged meanwhile.
        caught_up_s: until everything was recorded.
        differences: between index, hashes, record and what was acknowledged, afterwards.
    """

    agents: int
    waited: int
    refused: int
    caught_up_s: float
    differences: int
    lookups: Answered


class RecoveryResult(msgspec.Struct, frozen=True):
    flush: FlushResult
    outage: OutageResult

    @property
    def held(self) -> bool:
        flush, outage = self.flush, self.outage
        wrong = flush.differences + outage.differences + outage.refused
        without_answer = flush.lookups.unanswered + outage.lookups.unanswered
        return not (wrong or without_answer) and flush.found == flush.agents

    @property
    def verdict(self) -> str:
        return (
            f"FLUSHALL at {self.flush.agents:,} agents: {self.flush.index_s:.1f} s; "
            f"ten minutes without Postgres at {self.outage.agents:,}: {self.outage.caught_up_s:.1f} s; "
            f"{self.flush.differences + self.outage.differences} differences"
        )


def measure_recovery(agents: int, *, tell: Tell) -> RecoveryResult:
    """Measures both, one after the other.

    Args:
        agents: for the flush; a tenth of them for the outage.
        tell: called with what is being done.
    """
    return RecoveryResult(flush=_flush(agents, tell), outage=_outage(agents // 10, tell))


def _flush(agents: int, tell: Tell) -> FlushResult:
    with _house() as (house, _):
        tell(f"{agents:,} agents report")
        fleets = _large_fleet(house, agents - _AT_FIRST)
        for fleet in fleets:
            _report(fleet)
        house.until_quiet(timeout_s=300)
        tell("FLUSHALL")
        house.fleet.start()
        flushed = time.monotonic()
        with house.valkey.client() as client:
            client.flushall()
        house.lookups.until(lambda answer: answer.source == "record")
        house.lookups.until(lambda answer: answer.source == "index", timeout_s=300)
        answers = house.lookups.since(flushed)
        last = max(answer.at for answer in answers if answer.source == "record")
        back = next(answer.at for answer in answers if answer.source == "index" and answer.at > last)
        found = int(house.get(_SEARCH).headers["x-total-count"])
        house.fleet.stop()
        house.fleet.report()
        house.until_quiet(timeout_s=300)
        tell("comparing")
        return FlushResult(
            agents=agents,
            index_s=round(back - flushed, 2),
            found=found,
            differences=len(house.differences()),
            lookups=_answered(answers),
        )


def _outage(agents: int, tell: Tell) -> OutageResult:
    with _house() as (house, postgres):
        fleets = _large_fleet(house, agents - _AT_FIRST)
        for fleet in fleets:
            _report(fleet)
        house.until_quiet(timeout_s=300)
        tell("Postgres is stopped (-m immediate)")
        stopped = time.monotonic()
        postgres.stop_immediately()
        refused = 0
        for turn in range(ROUNDS_OF_TEN_MINUTES):
            tell(f"{agents:,} agents report, {turn + 1} of {ROUNDS_OF_TEN_MINUTES}")
            house.fleet.report()
            refused += sum(_report(fleet) for fleet in fleets)
        with house.valkey.client() as client:
            groups = {group["name"]: group for group in client.xinfo_groups("headroom:heartbeats")}
        waited = int(groups["record"]["lag"]) + int(groups["record"]["pending"])
        answers = house.lookups.since(stopped)
        tell("Postgres is back")
        postgres.start()
        started = time.monotonic()
        house.until_quiet(timeout_s=300)
        caught_up_s = time.monotonic() - started
        tell("comparing")
        return OutageResult(
            agents=agents,
            waited=waited,
            refused=refused,
            caught_up_s=round(caught_up_s, 1),
            differences=len(house.differences()),
            lookups=_answered(answers),
        )


@contextmanager
def _house() -> Iterator[tuple[House, PostgresServer]]:
    with ExitStack() as closing:
        valkey = closing.enter_context(start_valkey())
        postgres = closing.enter_context(start_postgres())
        settings = {**_PATIENT, "heartbeat_target_per_s": 1_000_000.0}
        yield (
            closing.enter_context(opened_house(valkey, postgres, EVERYTHING, agents=_AT_FIRST, **settings)),
            postgres,
        )


def _large_fleet(house: House, agents: int) -> Sequence[Fleet]:
    return [
        house.another_fleet(agent_ids(min(_BATCH, agents - first), first=1_000_000 + first))
        for first in range(0, agents, _BATCH)
    ]


def _report(fleet: Fleet) -> int:
    """Returns how many heartbeats were not acknowledged."""
    before = fleet.accepted
    fleet.report_batch()
    return len(fleet.reporters) - (fleet.accepted - before)


def _answered(answers: Sequence[Lookup]) -> Answered:
    answered_ms = took_ms(answers)
    return Answered(
        lookups=len(answers),
        refused=sum(answer.status not in {0, 200} for answer in answers),
        unanswered=len(unanswered(answers)),
        p99_ms=round(quantile(answered_ms, 0.99), 1),
        slowest_ms=round(max(answered_ms), 1),
    )


def recovery_table(result: RecoveryResult) -> Table:
    table = Table()
    for title in (
        "what",
        "agents",
        "whole again after",
        "differences",
        "lookups",
        "p99",
        "slowest",
        "refused",
        "no answer",
    ):
        table.add_column(title, justify="left" if title == "what" else "right")
    outage = f"ten minutes of Postgres away, {result.outage.waited:,} entries waited"
    for what, agents, took_s, different, lookups in (
        ("FLUSHALL", result.flush.agents, result.flush.index_s, result.flush.differences, result.flush.lookups),
        (
            outage,
            result.outage.agents,
            result.outage.caught_up_s,
            result.outage.differences,
            result.outage.lookups,
        ),
    ):
        table.add_row(
            what,
            f"{agents:,}",
            f"{took_s:.1f} s",
            str(different),
            f"{lookups.lookups:,}",
            f"{lookups.p99_ms:.0f} ms",
            f"{lookups.slowest_ms:.0f} ms",
            str(lookups.refused),
            str(lookups.unanswered),
        )
    return table
