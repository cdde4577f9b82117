"""A day in the life of an agent, in a few seconds: network cuts, server restarts, clock jumps, sleep, reboots.

Clock, waiting and network are simulated; the loop, the schedule, the delivery, the identity, and the probes for
CPU and memory are the real ones.
"""

from __future__ import annotations

import functools
import gc
import itertools
import logging
import pathlib
import random
import tracemalloc
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from tests import simulated_time
from tests.simulated_time import SimulatedClock, SimulatedPause, Sleep
from workers.host_agent.agent import Agent
from workers.host_agent.busy import BusyCheck
from workers.host_agent.claims_dir import ClaimsDir
from workers.host_agent.config import Config
from workers.host_agent.connection import HttpAnswer
from workers.host_agent.delivery import Delivery
from workers.host_agent.heartbeat import Reporter
from workers.host_agent.identity import keep_agent_id, only_agent
from workers.host_agent.machine import this_machine
from workers.host_agent.probes.cgroup import Cgroups
from workers.host_agent.probes.cpu import CpuProbe
from workers.host_agent.probes.devices import Sample
from workers.host_agent.probes.memory import read_memory
from workers.host_agent.schedule import Schedule

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
# What the test itself keeps (named tuples are made in "<string>"), and the table of interned names, which pathlib
# fills with every part of every path and Python makes anew from time to time.
NOT_THE_AGENTS = (__file__, simulated_time.__file__, tracemalloc.__file__, "<string>", pathlib.__file__)


class Accepted(NamedTuple):
    at_s: float
    path: str
    heartbeat: Any
    wish_s: float


class Network:
    """A server behind a network, both of which have their days. Outages are (from, until, how it fails)."""

    def __init__(self, clock: SimulatedClock, outages: list[tuple[float, float, str]]) -> None:
        self.clock = clock
        self.outages = outages
        self.accepted: list[Accepted] = []
        self.attempts: list[float] = []
        self.wishes: list[tuple[float, float]] = []

    @property
    def wish_s(self) -> float:
        return next((wish_s for since_s, wish_s in reversed(self.wishes) if self.clock.time_s >= since_s), 30.0)

    def post(self, path: str, body: bytes, headers: Mapping[str, str], *, timeout_s: float) -> HttpAnswer:
        assert headers["Content-Type"] == "application/msgpack"
        now_s = self.clock.time_s
        self.attempts.append(now_s)
        for start_s, end_s, failure in self.outages:
            if start_s <= now_s < end_s:
                return self._fail(failure, timeout_s)
        self.clock.time_s += 0.02
        wish_s = self.wish_s
        self.accepted.append(Accepted(now_s, path, msgspec.msgpack.decode(body), wish_s))
        return HttpAnswer(202, msgspec.json.encode({"stream_id": "1-0", "next_heartbeat_s": wish_s}), None)

    def _fail(self, failure: str, timeout_s: float) -> HttpAnswer:
        if failure == "silence":
            self.clock.time_s += timeout_s
            raise TimeoutError("timed out")
        if failure == "refused":
            self.clock.time_s += 0.001
            raise ConnectionRefusedError(111, "Connection refused")
        self.clock.time_s += 0.01
        return HttpAnswer(503, b"", 20.0)

    def close(self) -> None:
        """Nothing is open."""


class NoGpus:
    def sample(self, **_: object) -> Sample:
        return Sample([], [])


class Vitals:
    """Looks at the process once an hour, called by the agent's loop: open descriptors, and memory of the code."""

    def __init__(self, clock: SimulatedClock) -> None:
        self._clock = clock
        self._next_s = clock.time_s + HOUR_S
        self.descriptors: list[int] = []
        self.snapshots: list[tracemalloc.Snapshot] = []

    def look(self) -> None:
        if self._clock.time_s < self._next_s:
            return
        self._next_s = self._clock.time_s + HOUR_S
        gc.collect()
        self.descriptors.append(sum(1 for _ in Path("/proc/self/fd").iterdir()))
        others = [tracemalloc.Filter(inclusive=False, filename_pattern=name) for name in NOT_THE_AGENTS]
        self.snapshots.append(tracemalloc.take_snapshot().filter_traces(others))

    def grown(self, since_hour: int) -> list[tracemalloc.StatisticDiff]:
        """Where memory is held that was not held then, the largest first."""
        return self.snapshots[-1].compare_to(self.snapshots[since_hour], "lineno")


def live(
    clock: SimulatedClock,
    network: Network,
    state_dir: Path,
    *,
    until_s: float,
    sleeps: list[Sleep],
    vitals: Vitals,
) -> str:
    """One boot of the agent, from its start to its goodbye; returns who it was."""
    config = Config(state_dir=state_dir)
    rng = random.Random(int(until_s))
    pause = SimulatedPause(clock, until_s, sleeps)
    cgroups = Cgroups()
    with only_agent(state_dir):
        agent_id = keep_agent_id(state_dir, this_machine())
        reporter = Reporter(
            config,
            clock=clock,
            cpu=CpuProbe(clock, cgroups),
            memory=functools.partial(read_memory, cgroups),
            gpus=NoGpus(),
            busy=BusyCheck(config.busy_path, ""),
            claims=ClaimsDir(config.claims_path, clock),
        )
        delivery = Delivery(
            ("http://a", "http://b"),
            timeout_s=5.0,
            token=lambda: "",
            pause=pause,
            clock=clock,
            connect=lambda _: network,
        )
        Agent(
            agent_id,
            source=reporter,
            sender=delivery,
            schedule=Schedule(config.interval_s, rng),
            clock=clock,
            pause=pause,
            rng=rng,
            alive=vitals.look,
        ).run()
    return agent_id


def boots(accepted: list[Accepted]) -> list[list[Accepted]]:
    """What was accepted, a list a boot."""
    found: dict[str, list[Accepted]] = {}
    for one in accepted:
        found.setdefault(one.heartbeat["boot_id"], []).append(one)
    return list(found.values())


def running(boot: list[Accepted]) -> list[Accepted]:
    return [one for one in boot if one.heartbeat.get("status") != "offline"]


@pytest.mark.timeout(300)
def test_a_day(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # pytest keeps every line it captures, which would count as growth.
    caplog.set_level(logging.CRITICAL)
    clock = SimulatedClock()
    hours = [clock.time_s + hour * HOUR_S for hour in range(25)]
    network = Network(
        clock,
        [
            (hours[1], hours[1] + 45, "refused"),  # the server is restarted
            (hours[2], hours[3], "silence"),  # an hour without network
            (hours[4], hours[4] + 600, "busy"),  # the server is overrun
            (hours[9], hours[9] + 5, "silence"),
            *((hours[12] + 40 * n, hours[12] + 40 * n + 20, "refused") for n in range(45)),  # it comes and goes
            (hours[20], hours[21], "refused"),
        ],
    )
    network.wishes = [(hours[10], 60.0), (hours[11], 10.0), (hours[12], 30.0)]
    clock.jumps = [
        (hours[hour], timedelta(hours=jump)) for hour, jump in ((3, -5), (7, 24 * 365), (13, 0), (22, -1))
    ]
    sleeps = [
        Sleep(hours[6], 2 * HOUR_S),
        Sleep(hours[14], 70),
        Sleep(hours[15] + 7, 0.5),
        Sleep(hours[16], HOUR_S),
    ]
    vitals = Vitals(clock)
    tracemalloc.start()
    try:
        # It ends twice in the evening: a reboot, and an update right after.
        names = {
            live(clock, network, tmp_path, until_s=until_s, sleeps=sleeps, vitals=vitals)
            for until_s in (hours[18], hours[18] + 200, hours[24])
        }
    finally:
        tracemalloc.stop()
    assert len(names) == 1, "the identity is the same all day"
    assert len({one.path for one in network.accepted}) == 1

    by_boot = boots(network.accepted)
    assert len(by_boot) == 3
    for boot in by_boot:
        numbers = [one.heartbeat["seq"] for one in boot]
        assert numbers == sorted(set(numbers)), "seq only rises"
        assert [one.heartbeat.get("status") for one in boot].count("offline") == 1
        assert boot[-1].heartbeat["status"] == "offline", "it says goodbye"
        assert_the_wish_is_kept(running(boot))
    awake_s = DAY_S - sum(sleep.lasts_s for sleep in (Sleep(0, 2 * HOUR_S), Sleep(0, HOUR_S)))
    assert len(network.accepted) > 0.6 * awake_s / 30

    assert_back_soon(network, [hours[1] + 45, hours[3], hours[4] + 600, hours[21]], within_s=75)
    assert_back_soon(network, [hours[8], hours[17]], within_s=15)
    assert_patient(network)

    assert len(vitals.descriptors) >= 18
    assert len(set(vitals.descriptors)) == 1, "no descriptor is left open"
    grown = vitals.grown(since_hour=3)
    assert sum(difference.size_diff for difference in grown) < 64 * 1024, list(map(str, grown[:5]))


def assert_the_wish_is_kept(heartbeats: list[Accepted]) -> None:
    """Never faster than the server last wished, but for the jitter: no burst after any cut, jump or sleep."""
    for before, after in itertools.pairwise(heartbeats):
        assert after.at_s - before.at_s >= before.wish_s * 0.95 - 0.05
    for first in heartbeats:
        window_s = 10 * 30.0 if first.wish_s < 30 else 10 * first.wish_s
        limit = window_s / min(one.wish_s for one in heartbeats) / 0.95 + 1
        assert sum(first.at_s <= one.at_s < first.at_s + window_s for one in heartbeats) <= limit


def assert_back_soon(network: Network, moments: list[float], *, within_s: float) -> None:
    for moment in moments:
        after = next(one for one in network.accepted if one.at_s >= moment)
        assert after.at_s - moment <= within_s


def assert_patient(network: Network) -> None:
    """In an hour without a server the tries get rare: two addresses, a minute apart at the end."""
    start_s, end_s, _ = network.outages[-1]
    tries = [at_s for at_s in network.attempts if start_s + 300 <= at_s < end_s]
    assert 55 * 2 <= len(tries) <= 75 * 2
