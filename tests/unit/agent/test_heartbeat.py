"""A heartbeat is made whatever cannot be read."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec
import psutil
import pytest

from app.errors import StartupRefusedError
from app.models.capacity import AgentStatus
from app.models.heartbeat import RunningClaim
from tests.simulated_time import SimulatedClock
from workers.host_agent.config import Config
from workers.host_agent.heartbeat import Reporter, pack
from workers.host_agent.probes.cpu import CpuReading
from workers.host_agent.probes.devices import Device, Sample
from workers.host_agent.probes.memory import MemoryReading
from workers.host_agent.sensors import open_sensors

_V = TypeVar("_V")
GPU = Device("nvidia", 0, "GPU-a", "Titan", 24 * 1024, 20 * 1024)
FAILURES = [
    OSError(5, "Input/output error"),
    ValueError("no number"),
    ZeroDivisionError("period"),
    KeyError("MemTotal"),
    psutil.AccessDenied(1),
    TypeError("a library has changed"),
]


class Machine:
    """Every probe of the reporter; `fail` breaks one by its name."""

    def __init__(self) -> None:
        self.broken: dict[str, Exception] = {}
        self.is_busy = False

    def percent(self) -> float:
        return self._say("percent", 12.5)

    def cpu(self) -> CpuReading:
        return self._say("cpu", CpuReading(8, 6, 2.0, 1.5))

    def memory(self) -> MemoryReading:
        return self._say("memory", MemoryReading(50.0, 8.0, 16.0))

    def sample(self, *, with_processes: bool, stopping: Callable[[], bool]) -> Sample:
        return self._say("gpus", Sample([GPU], []))

    def busy(self) -> bool:
        return self._say("busy", self.is_busy)

    def pending(self) -> bool:
        return self._say("pending", True)

    def claims(self, _devices: list[Device]) -> tuple[RunningClaim, ...]:
        return self._say("claims", (RunningClaim(claim_id="a"),))

    def _say(self, name: str, value: _V) -> _V:
        if name in self.broken:
            raise self.broken[name]
        return value


class _Named:
    """A probe whose `read` is another method of the machine."""

    def __init__(self, machine: Machine, read: Callable[..., Any]) -> None:
        self.percent = machine.percent
        self.pending = machine.pending
        self.read = read


def reporter_of(machine: Machine, clock: SimulatedClock | None = None) -> Reporter:
    return Reporter(
        Config(hostname="me"),
        clock=clock or SimulatedClock(),
        cpu=_Named(machine, machine.cpu),
        memory=machine.memory,
        gpus=machine,
        busy=machine,
        claims=_Named(machine, machine.claims),
    )


def heartbeat(reporter: Reporter) -> dict[str, Any]:
    sent: dict[str, Any] = msgspec.msgpack.decode(pack(reporter.report()))
    return sent


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("percent", {"cpu_percent"}),
        ("cpu", {"cpu_cores_physical", "cpu_load_1min", "cpu_load_5min"}),
        ("memory", {"memory_percent", "memory_available_gb"}),
        ("gpus", set()),
        ("busy", set()),
        ("pending", set()),
        ("claims", set()),
    ],
)
def test_what_cannot_be_read_is_left_out_and_said_once(
    name: str, missing: set[str], failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine()
    reporter = reporter_of(machine)
    whole = heartbeat(reporter)
    machine.broken[name] = failure
    with caplog.at_level(logging.INFO):
        seen = [heartbeat(reporter) for _ in range(3)]
        assert reporter.look().troubles
    for sent in seen:
        assert whole["resource_metrics"].keys() - sent["resource_metrics"].keys() == missing
    assert len([record for record in caplog.records if "cannot be read" in record.message]) == 1
    last = seen[-1]
    if name == "cpu":
        assert last["resource_metrics"]["cpu_cores_available"] == 0, "nothing is placed on what is not known"
    if name == "gpus":
        assert last["resource_metrics"]["gpu_type"] == "none"
        assert type(failure).__name__ in last["gpu_reason"]
    if name == "claims":
        assert "running_claims" not in last
    machine.broken.clear()
    with caplog.at_level(logging.INFO):
        assert heartbeat(reporter).keys() == whole.keys()
    assert "can be read again" in caplog.text


def test_when_everything_fails_there_is_still_a_sign_of_life() -> None:
    machine = Machine()
    names = ("percent", "cpu", "memory", "gpus", "busy", "pending", "claims")
    machine.broken = {name: OSError(5, "Input/output error") for name in names}
    reporter = reporter_of(machine)
    reporter.begin()
    sent = heartbeat(reporter)
    assert (sent["seq"], sent["resource_metrics"]["cpu_cores_available"]) == (1, 0)


@pytest.mark.parametrize("before", [True, False])
def test_a_busy_flag_that_cannot_be_asked_for_leaves_the_last_answer(*, before: bool) -> None:
    machine = Machine()
    machine.is_busy = before
    reporter = reporter_of(machine)
    reporter.report()
    machine.broken["busy"] = OSError(5, "Input/output error")
    assert (reporter.report().status is AgentStatus.BUSY) is before


@pytest.mark.parametrize(("year", "told"), [(1970, False), (2000, True), (2100, True), (2106, False)])
def test_a_machine_that_lost_its_clock_does_not_tell_the_time(year: int, *, told: bool) -> None:
    """A heartbeat with such a `sent_at` would be refused, and the machine never seen."""

    class Lost(SimulatedClock):
        def wall(self) -> datetime:
            return datetime(year, 1, 1, tzinfo=UTC)

    assert ("sent_at" in heartbeat(reporter_of(Machine(), Lost()))) is told


def test_a_root_that_is_no_machines_is_refused(tmp_path: Path) -> None:
    def stop() -> NoReturn:
        raise AssertionError

    for root in (tmp_path / "missing", tmp_path):
        with (
            pytest.raises(StartupRefusedError, match="host_root"),
            open_sensors(Config(host_root=root), SimulatedClock(), stopping=lambda: False),
        ):
            stop()
