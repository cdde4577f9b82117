"""Long random histories in simulated time: a fleet lives through faults, and what must hold is asked when quiet.

Every seed is a history of its own that can be run again: servers are real, time and chance are made.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Final

import msgspec
import redis

from app.models.capacity import AgentStatus
from app.record import migrate
from app.telemetry import configure_logging
from tests.bench.filling import end_with_parent
from tests.faults.dying import Death
from tests.faults.world import OFFLINE_AFTER_S, World, opened_world, world_settings
from tests.servers import start_valkey

REPORT_EVERY_S: Final = 40.0
"""The longest interval that agents are ever told."""
_DEATHS: Final[tuple[Death, ...]] = ("read", "written")
_JUMPS_S: Final = (-3600.0, -120.0, 120.0, 3600.0)
_STEPS_S: Final = (-14.0, -5.0, -1.0, 1.0, 5.0, 14.0)


class History(msgspec.Struct, frozen=True):
    """What became of one seed.

    Attributes:
        broken: what did not hold, one sentence each; the history ended there.
        false_offline: agents that were declared offline, or left out of a search, though they had reported
            in time.
        false_online: agents that a search showed though they had been silent for too long.
        faults: how often each kind of fault was made.
        checks: how often it was quiet and everything was compared.
    """

    seed: int
    agents: int
    agent_hours: float
    heartbeats: int
    lookups: int
    checks: int
    faults: dict[str, int]
    broken: list[str]
    false_offline: int = 0
    false_online: int = 0


class Simulated(msgspec.Struct, frozen=True):
    """All seeds of a run."""

    took_s: float
    histories: list[History]

    @property
    def broken(self) -> list[History]:
        return [history for history in self.histories if history.broken]

    @property
    def agent_hours(self) -> float:
        return sum(history.agent_hours for history in self.histories)

    @property
    def heartbeats(self) -> int:
        return sum(history.heartbeats for history in self.histories)

    @property
    def lookups(self) -> int:
        return sum(history.lookups for history in self.histories)

    @property
    def checks(self) -> int:
        return sum(history.checks for history in self.histories)

    @property
    def faults(self) -> Counter[str]:
        total: Counter[str] = Counter()
        for history in self.histories:
            total.update(history.faults)
        return total

    @property
    def verdict(self) -> str:
        broken = sum(len(history.broken) for history in self.histories)
        return f"{len(self.histories)} seeds, {self.agent_hours:,.0f} agent-hours, {broken} broken invariants"


class Simulation:
    """One history. Each seed has a fleet and a weather of its own: how often what goes wrong."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._chance = random.Random(seed)
        self._seed = seed
        self.agents = self._chance.choice([20, 60, 150])
        self._away_until_s: dict[int, float] = {}
        self._faults: dict[str, int] = {}
        self._checks = 0
        self._record_back_s = 0.0
        self._receiving_again_s = 0.0
        self._taken_over_s = 0.0
        kinds = ("flush", "record away", "nobody receives", "clock", "no reaper", "death", "clone", "clock step")
        self._odds = {kind: self._chance.choice([0.0, 0.01, 0.04]) for kind in kinds}
        self._odds["death"] *= 5

    async def run(self, agent_hours: float) -> History:
        """Lets so much time pass."""
        end_s = self._world.steady_s + 3600 * agent_hours / self.agents
        broken: list[str] = []
        while not broken and self._world.steady_s < end_s:
            await self._step()
            if self._chance.random() < 0.05 or self._world.steady_s >= end_s:
                broken = await self._check()
        return History(
            seed=self._seed,
            agents=self.agents,
            agent_hours=round((self._world.steady_s - OFFLINE_AFTER_S) * self.agents / 3600, 2),
            heartbeats=self._world.appended,
            lookups=len(self._world.lookups.answers),
            checks=self._checks,
            faults=self._faults,
            broken=broken,
            false_offline=sum("declared offline" in what or "not found" in what for what in broken),
            false_online=sum(": found after" in what for what in broken),
        )

    async def _step(self) -> None:
        """What happens within one interval of heartbeats."""
        await self._heartbeats()
        await self._trouble()
        await self._work()
        await self._world.search(limit=10_000)
        if self._happens("no reaper"):
            await self._world.pause(self._chance.choice([1.0, 30.0, 91.0]))
        else:
            await self._world.wait(REPORT_EVERY_S)

    async def _heartbeats(self) -> None:
        numbers = list(range(self.agents))
        self._chance.shuffle(numbers)
        now_s = self._world.steady_s
        by_status: dict[AgentStatus, list[int]] = {status: [] for status in AgentStatus}
        for number in numbers:
            if now_s < self._away_until_s.get(number, 0.0):
                continue
            dice = self._chance.random()
            if dice < 0.01:
                self._away_until_s[number] = now_s + self._chance.choice([45.0, 95.0, 300.0, 1500.0])
                if dice < 0.003:
                    by_status[AgentStatus.OFFLINE].append(number)
                continue
            if dice > 0.995:
                self._world.restart(number)
            by_status[AgentStatus.BUSY if 0.1 < dice < 0.13 else AgentStatus.ONLINE].append(number)
        for status, those in by_status.items():
            if those:
                await self._world.report(*those, status=status)
        await self._network(numbers[:3])

    async def _network(self, numbers: Sequence[int]) -> None:
        """Heartbeats that come twice, that overtake each other, and from another machine with the same disk."""
        _, swapped, cloned = (self._world.reporter(number) for number in numbers)
        await self._world.repeat(numbers[0], self._chance.randint(1, 5))
        swapped.next()
        swapped.next()
        await self._world.send([(swapped, swapped.sent[-1]), (swapped, swapped.sent[-2])])
        if self._happens("clone"):
            await self._world.clone_reports(cloned)
        if self._odds["clone"]:
            # Whoever has been silent of late.
            for number in self._away_until_s:
                if self._chance.random() < 0.1:
                    await self._world.former_boot_reports(self._world.reporter(number))

    async def _trouble(self) -> None:
        world, now_s = self._world, self._world.steady_s
        if world.record_away and now_s >= self._record_back_s:
            world.record_away = False
        if not world.receiving and now_s >= self._receiving_again_s:
            world.receiving = True
        if self._happens("record away"):
            world.record_away = True
            self._record_back_s = now_s + self._chance.choice([30.0, 600.0])
        if self._happens("nobody receives"):
            world.receiving = False
            self._receiving_again_s = now_s + self._chance.choice([20.0, 300.0])
        if self._happens("flush"):
            await world.flush()
        if self._happens("clock"):
            await world.jump(self._chance.choice(_JUMPS_S), noticed=self._chance.random() < 0.5)
        if self._happens("clock step"):
            await world.jump(self._chance.choice(_STEPS_S), noticed=self._chance.random() < 0.5)

    async def _work(self) -> None:
        world = self._world
        world.taking_over = world.steady_s >= self._taken_over_s
        if self._chance.random() < 0.9:
            await world.rebuild_if_due()
        for which in range(2):
            death = self._death()
            if self._chance.random() < 0.55:
                await world.ingest(which, death=death)
        if self._chance.random() < 0.4:
            death = self._death()
            await world.record_round(self._chance.randrange(2), death=death)

    def _death(self) -> Death | None:
        if not self._happens("death"):
            return None
        self._taken_over_s = self._world.steady_s + self._chance.choice([0.0, 60.0, 150.0])
        return self._chance.choice(_DEATHS)

    async def _check(self) -> list[str]:
        self._checks += 1
        try:
            await self._world.settle()
        except AssertionError as endless:
            return [str(endless)]
        return [*await self._world.differences(), *await self._world.misjudged()]

    def _happens(self, kind: str) -> bool:
        happens = self._chance.random() < self._odds[kind]
        if happens:
            self._faults[kind] = self._faults.get(kind, 0) + 1
        return happens


def simulate(seed: int, agent_hours: float, *, redis_url: str, empty_record: Path) -> History:
    """Runs one seed on this server, which is emptied first, and on a copy of this record."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    with tempfile.TemporaryDirectory(prefix="hr-simulation-") as directory:
        record = shutil.copy(empty_record, Path(directory) / "record.db")

        async def run() -> History:
            async with opened_world(world_settings(redis_url, f"sqlite+aiosqlite:///{record}")) as world:
                return await Simulation(world, seed).run(agent_hours)

        return asyncio.run(run())


def simulate_all(seeds: Sequence[int], agent_hours: float, *, processes: int) -> Iterator[History]:
    """Runs every seed for so many agent-hours, several at a time on a server each; yields each as it ends."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as closing:
        directory = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="hr-simulation-")))
        empty_record = directory / "empty.db"
        asyncio.run(migrate(f"sqlite+aiosqlite:///{empty_record}"))
        urls = context.Queue()
        for _ in range(processes):
            urls.put(closing.enter_context(start_valkey(unix_socket=True)).url)
        pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_begin_process, initargs=(urls,))
        closing.callback(pool.shutdown, cancel_futures=True)
        running = [pool.submit(_simulate_here, seed, agent_hours, empty_record) for seed in seeds]
        for ended in as_completed(running):
            yield ended.result()


_urls: list[str] = []
"""The server of this process of the pool."""


def _begin_process(urls: Queue[str]) -> None:
    end_with_parent()
    # What is broken is said in the end; hours of it would hide that.
    configure_logging("CRITICAL", "text")
    _urls.append(urls.get())


def _simulate_here(seed: int, agent_hours: float, empty_record: Path) -> History:
    return simulate(seed, agent_hours, redis_url=_urls[0], empty_record=empty_record)
