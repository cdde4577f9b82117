"""Runs a simulated fleet against an API until it is stopped."""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from random import SystemRandom
from typing import Final

import httpx
import msgspec
from rich.console import Console

from app.errors import StartupRefusedError
from workers.simulate.fleet import DEFAULT_PROFILE, DEFAULT_SEED, Fleet, Machine
from workers.simulate.hardware import PROFILES
from workers.simulate.progress import Progress
from workers.simulate.sending import CONNECTIONS, MAX_BATCH, Deferred, Delivery

_FIRST_BATCH: Final = 250
"""The whole fleet is to be seen quickly, and no single request may hold up others for long."""

_BATCHES_PER_S: Final = 10.0
_LONGEST_BACKOFF_S: Final = 10.0

_jitter = SystemRandom()


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a run did. `deferred` counts heartbeats that had to wait, once for each attempt."""

    agents: int
    seconds: float
    accepted: int
    rejected: int
    deferred: int
    latency_p50_ms: float
    latency_p99_ms: float
    refusals: dict[str, int]


async def simulate(
    count: int,
    *,
    url: str,
    profile: str = DEFAULT_PROFILE,
    seed: int = DEFAULT_SEED,
    interval_s: float = 30.0,
    rounds: int | None = None,
    allow_remote: bool = False,
    stop: asyncio.Event | None = None,
    console: Console | None = None,
    live: bool | None = None,
) -> Summary:
    """Lets `count` simulated agents report until SIGTERM, SIGINT, `stop`, or `rounds` rounds.

    Args:
        count: how many agents.
        url: of the API, such as http://127.0.0.1:8000.
        profile: what the fleet is made of, a name of `hardware.PROFILES`.
        seed: same seed, same agents.
        interval_s: what to go by until the server names an interval of its own.
        rounds: end when every agent had its turn this often; None: never.
        allow_remote: permit a server that is not on this machine.
        stop: ends the run when set; signals are then the caller's business.
        console: where to write; standard error if not given.
        live: whether to draw a bar; if not given, where a person sits at a terminal that is ours alone.

    Raises:
        StartupRefusedError: unknown profile, or a server elsewhere that was not permitted.
    """
    if profile not in PROFILES:
        raise StartupRefusedError(f"No such profile; there are: {', '.join(sorted(PROFILES))}")
    if not allow_remote and not _on_loopback(url):
        raise StartupRefusedError("The simulated fleet reports to this machine only, unless told otherwise")
    console = console or Console(stderr=True)
    if live is None:
        # A part of `headroom up` shares the terminal with the log lines of others, and has no input.
        live = console.is_terminal and sys.stdin.isatty()
    fleet = Fleet(count, profile=profile, seed=seed, run=secrets.token_hex(4))
    begun = time.monotonic()
    with _stopping(stop) as stopping:
        async with Delivery(url) as delivery:
            with Progress(console, fleet, delivery, live=live) as progress:
                run = asyncio.create_task(_Run(fleet, delivery, progress, interval_s).run(rounds))
                halt = asyncio.create_task(stopping.wait())
                await asyncio.wait({run, halt}, return_when=asyncio.FIRST_COMPLETED)
                halt.cancel()
                run.cancel()
                await asyncio.wait({run, halt})
                if not run.cancelled():
                    run.result()
                summary = _summary(fleet, delivery, time.monotonic() - begun)
                progress.end(summary.seconds, summary.latency_p50_ms, summary.latency_p99_ms)
    return summary


class _Run:
    """The fleet is cut into slices; each goes its own way, spread over the interval."""

    def __init__(self, fleet: Fleet, delivery: Delivery, progress: Progress, interval_s: float) -> None:
        self._fleet = fleet
        self._delivery = delivery
        self._progress = progress
        self._interval_s = interval_s
        self._turns = asyncio.Semaphore(CONNECTIONS)

    async def run(self, rounds: int | None) -> None:
        await self._first_round()
        self._progress.all_reported()
        if rounds == 1:
            return
        begun = time.monotonic()
        size = min(MAX_BATCH, max(1, round(len(self._fleet.machines) / (self._interval_s * _BATCHES_PER_S))))
        slices = _cut(self._fleet.machines, size)
        async with asyncio.TaskGroup() as group:
            for number, machines in enumerate(slices, start=1):
                first_due = begun + self._interval_s * number / len(slices)
                group.create_task(self._keep_reporting(machines, first_due, rounds))

    async def _first_round(self) -> None:
        async with asyncio.TaskGroup() as group:
            reports = [
                group.create_task(self._report(machines)) for machines in _cut(self._fleet.machines, _FIRST_BATCH)
            ]
        self._interval_s = max((report.result() for report in reports), default=self._interval_s)

    async def _keep_reporting(self, machines: tuple[Machine, ...], due: float, rounds: int | None) -> None:
        done = 1
        while rounds is None or done < rounds:
            await asyncio.sleep(due - time.monotonic())
            interval_s = await self._report(machines)
            # A slice that could not keep up skips its missed turns instead of catching up in a rush.
            due = max(due + interval_s, time.monotonic())
            done += 1

    async def _report(self, machines: tuple[Machine, ...]) -> float:
        """Delivers the machines' next heartbeats; returns when they are wanted again, in seconds.

        While the server takes nothing, only the newest heartbeat of each is kept: whenever an interval has
        passed, the next one takes its place.
        """
        heartbeats = self._fleet.beat(machines)
        born = time.monotonic()
        attempts = 0
        while heartbeats:
            async with self._turns:
                outcome = await self._delivery.post(heartbeats)
            self._progress.update()
            if not isinstance(outcome, Deferred):
                self._progress.taken()
                return outcome.next_heartbeat_s or self._interval_s
            self._progress.deferred(outcome.reason)
            await asyncio.sleep(_wait_s(outcome, attempts))
            attempts += 1
            if time.monotonic() - born >= self._interval_s:
                heartbeats = self._fleet.beat(machines)
                born = time.monotonic()
        return self._interval_s


def _wait_s(outcome: Deferred, attempts: int) -> float:
    """At least what the server asked for, and never all at once."""
    ceiling_s = min(_LONGEST_BACKOFF_S, 0.5 * 2.0 ** min(attempts, 10))
    return (outcome.retry_after_s or 0.0) + _jitter.uniform(0.1, ceiling_s)


def _cut(machines: tuple[Machine, ...], size: int) -> list[tuple[Machine, ...]]:
    """Deals the machines out like cards, so that every slice is as mixed as the fleet."""
    slices = -(-len(machines) // size)
    return [machines[number::slices] for number in range(slices)]


def _on_loopback(url: str) -> bool:
    host = httpx.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def _stopping(given: asyncio.Event | None) -> Iterator[asyncio.Event]:
    """The caller's event, or one of our own that SIGTERM and SIGINT set."""
    if given is not None:
        yield given
        return
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, event.set)
    try:
        yield event
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def _summary(fleet: Fleet, delivery: Delivery, seconds: float) -> Summary:
    latencies_ms = sorted(1_000 * latency_s for latency_s in delivery.latencies_s) or [0.0]
    return Summary(
        agents=len(fleet.machines),
        seconds=seconds,
        accepted=delivery.accepted,
        rejected=delivery.rejected,
        deferred=delivery.deferred,
        latency_p50_ms=latencies_ms[len(latencies_ms) // 2],
        latency_p99_ms=latencies_ms[int(0.99 * (len(latencies_ms) - 1))],
        refusals=dict(delivery.refusals),
    )
