"""Random histories of everything at once: Hypothesis finds them, shrinks them, and prints how to repeat them."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from app.models.capacity import AgentStatus
from app.record import migrate
from tests.faults.dying import Death
from tests.faults.simulation import simulate
from tests.faults.world import World, opened_world, world_settings
from tests.servers import ValkeyServer

T = TypeVar("T")

numbers = st.integers(0, 5)
workers = st.integers(0, 1)
deaths: st.SearchStrategy[Death | None] = st.sampled_from([None, None, "read", "written"])
statuses = st.sampled_from([AgentStatus.ONLINE, AgentStatus.ONLINE, AgentStatus.BUSY, AgentStatus.OFFLINE])


JUMPS_S = [-3600.0, -120.0, -14.0, -5.0, -1.0, 1.0, 5.0, 14.0, 120.0, 3600.0]


class Machine(RuleBasedStateMachine):
    """Every rule is something that happens to a running Headroom; what must hold is asked whenever it is quiet."""

    server: ClassVar[ValkeyServer]
    empty_record: ClassVar[Path]

    def __init__(self) -> None:
        super().__init__()
        self.server.flush()
        self._runner = asyncio.Runner()
        self._directory = Path(tempfile.mkdtemp(prefix="hr-machine-"))
        record = shutil.copy(self.empty_record, self._directory / "record.db")
        self._stack = AsyncExitStack()
        self._quiet = True
        opened = opened_world(world_settings(self.server.url, f"sqlite+aiosqlite:///{record}"))
        self.world: World = self._run(self._stack.enter_async_context(opened))

    def teardown(self) -> None:
        try:
            self.become_quiet()
        finally:
            self._run(self._stack.aclose())
            self._runner.close()
            shutil.rmtree(self._directory)

    @rule(number=numbers, status=statuses)
    def report(self, number: int, status: AgentStatus) -> None:
        self._run(self.world.report(number, status=status))

    @rule(order=st.permutations(range(6)))
    def all_report(self, order: list[int]) -> None:
        self._run(self.world.report(*order))

    @rule(number=numbers, back=st.integers(1, 5))
    def duplicate(self, number: int, back: int) -> None:
        """An earlier heartbeat arrives once more."""
        self._run(self.world.repeat(number, back))

    @rule(number=numbers)
    def reorder(self, number: int) -> None:
        """Two heartbeats overtake each other."""
        reporter = self.world.reporter(number)
        reporter.next()
        reporter.next()
        first, second = reporter.sent[-2:]
        self._run(self.world.send([(reporter, second), (reporter, first)]))

    @rule(number=numbers)
    def restart(self, number: int) -> None:
        self.world.restart(number)

    @rule(number=numbers)
    def clone(self, number: int) -> None:
        """Another machine with the same id and a former boot."""
        self._run(self.world.clone_reports(self.world.reporter(number)))

    @rule(number=numbers)
    def take_over(self, number: int) -> None:
        """The same after the agent was silent for long."""
        self._run(self.world.former_boot_reports(self.world.reporter(number)))

    @rule(taking_over=st.booleans())
    def dead_workers_are_missed_or_not(self, *, taking_over: bool) -> None:
        """What they had read comes out of order, or not yet."""
        self.world.taking_over = taking_over

    @rule(which=workers, death=deaths)
    def ingest(self, which: int, death: Death | None) -> None:
        self._run(self.world.ingest(which, death=death))

    @rule(which=workers, death=deaths)
    def record(self, which: int, death: Death | None) -> None:
        self._run(self.world.record_round(which, death=death))

    @rule()
    def reap(self) -> None:
        self._run(self.world.reap())

    @rule(seconds=st.sampled_from([0.5, 10.0, 29.0, 61.0, 91.0, 200.0]), reaper=st.booleans())
    def wait(self, seconds: float, *, reaper: bool) -> None:
        if reaper:
            self._run(self.world.wait(seconds))
        else:
            self._run(self.world.pause(seconds))

    @rule(seconds=st.sampled_from(JUMPS_S), noticed=st.booleans())
    def set_clock(self, seconds: float, *, noticed: bool) -> None:
        self._run(self.world.jump(seconds, noticed=noticed))

    @rule()
    def flush(self) -> None:
        self._run(self.world.flush())

    @rule(away=st.booleans())
    def record_goes_or_comes(self, *, away: bool) -> None:
        self.world.record_away = away

    @rule(receiving=st.booleans())
    def receivers_go_or_come(self, *, receiving: bool) -> None:
        self.world.receiving = receiving

    @rule()
    def rebuild(self) -> None:
        self._run(self.world.rebuild_if_due())

    @rule()
    def look_up(self) -> None:
        """A planner gets an answer from one of the stores, or is told that nobody can tell."""
        self._run(self.world.search())

    @rule()
    def become_quiet(self) -> None:
        self._run(self.world.settle())
        assert not self._run(self.world.differences())
        assert not self._run(self.world.misjudged())

    def _run(self, work: Awaitable[T]) -> T:
        async def awaited() -> T:
            return await work

        return self._runner.run(awaited())


@pytest.fixture
def machine(valkey_server: ValkeyServer, tmp_path: Path) -> type[Machine]:
    asyncio.run(migrate(f"sqlite+aiosqlite:///{tmp_path}/empty.db"))
    Machine.server, Machine.empty_record = valkey_server, tmp_path / "empty.db"
    return Machine


@pytest.mark.timeout(300)
def test_machine(machine: type[Machine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=15,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
            report_multiple_bugs=False,
        ),
    )


def test_simulation(valkey_server: ValkeyServer, tmp_path: Path) -> None:
    """The short form of `scripts/faults --simulate`."""
    empty_record = tmp_path / "empty.db"
    asyncio.run(migrate(f"sqlite+aiosqlite:///{empty_record}"))
    for seed in range(3):
        history = simulate(seed, 4.0, redis_url=valkey_server.url, empty_record=empty_record)
        assert not history.broken, history
        assert history.checks > 0
        assert history.heartbeats > 100
