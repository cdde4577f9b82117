"""One heartbeat: every probe read once, put together and packed."""

from __future__ import annotations

import itertools
import logging
import uuid
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol, TypeVar

import msgspec

from app.models.capacity import AgentStatus, GpuType
from app.models.heartbeat import Gpu, ResourceMetrics, RunningClaim
from app.models.identity import DEFAULT_AGENT_TYPE, DEFAULT_POOL_NAME
from workers.host_agent.clock import Clock
from workers.host_agent.config import Config
from workers.host_agent.probes.cpu import CpuReading
from workers.host_agent.probes.devices import MIB_PER_GB, Device, Sample, best
from workers.host_agent.probes.memory import MemoryReading

_LONGEST_REASON: Final = 500
_FIRST_YEAR: Final = 2000
_LAST_YEAR: Final = 2100
_log = logging.getLogger("headroom.agent")
_R = TypeVar("_R")
_D = TypeVar("_D")
_encoder = msgspec.msgpack.Encoder()


class Report(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of `POST /api/v1/agents/{agent_id}/heartbeat`, and `gpu_reason` for people who look at the wire."""

    agent_type: str = DEFAULT_AGENT_TYPE
    pool_name: str = DEFAULT_POOL_NAME
    hostname: str = ""
    status: AgentStatus = AgentStatus.ONLINE
    boot_id: str
    seq: int
    sent_at: str | None = None
    gpus: tuple[Gpu, ...] = ()
    running_claims: tuple[RunningClaim, ...] = ()
    resource_metrics: ResourceMetrics | None
    gpu_reason: str | None = None


class Look(NamedTuple):
    """All that one look at the machine saw; None for what could not be read, and `troubles` say why."""

    report: Report
    cpu: CpuReading | None
    memory: MemoryReading | None
    troubles: tuple[str, ...]


class CpuSource(Protocol):
    def percent(self) -> float: ...
    def read(self) -> CpuReading: ...


class GpuSource(Protocol):
    def sample(self, *, with_processes: bool, stopping: Callable[[], bool]) -> Sample: ...


class BusySource(Protocol):
    def busy(self) -> bool: ...


class ClaimSource(Protocol):
    def pending(self) -> bool:
        """Whether any claim is running, so that the GPUs are asked for their processes."""

    def read(self, devices: list[Device]) -> tuple[RunningClaim, ...]: ...


class Reporter:
    """Makes the agent's heartbeats; one object is one boot, so its sequence only rises."""

    def __init__(
        self,
        config: Config,
        *,
        clock: Clock,
        cpu: CpuSource,
        memory: Callable[[], MemoryReading],
        gpus: GpuSource,
        busy: BusySource,
        claims: ClaimSource,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._config = config
        self._clock = clock
        self._cpu = cpu
        self._memory = memory
        self._gpus = gpus
        self._busy = busy
        self._claims = claims
        self._stopping = stopping
        self._boot_id = str(uuid.uuid4())
        self._seq = itertools.count(1)
        self._was_busy = False
        self._last_reasons: list[str] = []
        self._troubles: dict[str, str] = {}

    def begin(self) -> None:
        """Starts what is measured between two readings."""
        self._read("CPU use", self._cpu.percent, None)
        self._read("CPU", self._cpu.read, None)

    def report(self) -> Report:
        return self.look().report

    def look(self) -> Look:
        """Whatever fails, there is a heartbeat: one with gaps is better than silence."""
        with_processes = self._read("The claims folder", self._claims.pending, instead=False)
        sample = self._read(
            "GPUs", lambda: self._gpus.sample(with_processes=with_processes, stopping=self._stopping), None
        )
        if sample is None:
            sample = Sample([], [self._troubles["GPUs"]])
        self._tell_changes(sample.reasons)
        # A flag that cannot be asked for leaves the last answer standing.
        self._was_busy = self._read("Busy", self._busy.busy, self._was_busy)
        cpu, memory = self._read("CPU", self._cpu.read, None), self._read("Memory", self._memory, None)
        report = self._make(
            status=AgentStatus.BUSY if self._was_busy else AgentStatus.ONLINE,
            gpus=tuple(map(_gpu, sample.devices)),
            running_claims=self._read("Running claims", lambda: self._claims.read(sample.devices), ()),
            resource_metrics=_metrics(self._read("CPU use", self._cpu.percent, None), cpu, memory, sample),
            gpu_reason="; ".join(sample.reasons)[:_LONGEST_REASON] or None,
        )
        return Look(report, cpu, memory, tuple(f"{what}: {why}" for what, why in self._troubles.items()))

    def goodbye(self) -> Report:
        """The last one: it takes effect at once, and the agent keeps its last metrics."""
        return self._make(status=AgentStatus.OFFLINE)

    def _make(
        self,
        *,
        status: AgentStatus,
        gpus: tuple[Gpu, ...] = (),
        running_claims: tuple[RunningClaim, ...] = (),
        resource_metrics: ResourceMetrics | None = None,
        gpu_reason: str | None = None,
    ) -> Report:
        return Report(
            agent_type=self._config.agent_type,
            pool_name=self._config.pool_name,
            hostname=self._config.hostname,
            status=status,
            boot_id=self._boot_id,
            seq=next(self._seq),
            sent_at=self._sent_at(),
            gpus=gpus,
            running_claims=running_claims,
            resource_metrics=resource_metrics,
            gpu_reason=gpu_reason,
        )

    def _sent_at(self) -> str | None:
        """None where the machine has lost its clock: servers refuse a heartbeat of such a year."""
        now = self._clock.wall()
        return now.isoformat(timespec="milliseconds") if _FIRST_YEAR <= now.year <= _LAST_YEAR else None

    def _read(self, what: str, probe: Callable[[], _R], instead: _D) -> _R | _D:
        """The reading, or `instead` where it fails; the log says so once until it works again."""
        try:
            reading = probe()
        except Exception as error:  # noqa: BLE001  # a sign of life must not depend on what a library may raise
            if what not in self._troubles:
                _log.warning("%s cannot be read: %s: %s", what, type(error).__name__, error)
            self._troubles[what] = f"{type(error).__name__}: {error}"
            return instead
        if self._troubles.pop(what, None) is not None:
            _log.info("%s can be read again", what)
        return reading

    def _tell_changes(self, reasons: list[str]) -> None:
        for reason in reasons:
            if reason not in self._last_reasons:
                _log.warning("GPU figures are missing: %s", reason)
        if self._last_reasons and not reasons:
            _log.info("GPU figures are back")
        self._last_reasons = reasons


def pack(report: Report) -> bytes:
    return _encoder.encode(report)


def _gpu(device: Device) -> Gpu:
    return Gpu(
        index=device.number,
        uuid=_printable(device.uuid, 128),
        name=_printable(device.name, 256),
        vram_total_gb=device.total_mib / MIB_PER_GB,
        vram_available_gb=min(device.free_mib, device.total_mib) / MIB_PER_GB,
    )


def _printable(text: str, longest: int) -> str:
    """Drivers may say anything; the server takes plain text."""
    return "".join(character for character in text if character.isprintable())[:longest]


def _metrics(
    cpu_percent: float | None, cpu: CpuReading | None, memory: MemoryReading | None, sample: Sample
) -> ResourceMetrics:
    device = best(sample.devices)
    return ResourceMetrics(
        cpu_percent=cpu_percent,
        cpu_cores_physical=cpu.cores_physical if cpu else None,
        cpu_cores_available=cpu.cores_available if cpu else 0,
        cpu_load_1min=cpu.load_1min if cpu else None,
        cpu_load_5min=cpu.load_5min if cpu else None,
        memory_percent=memory.percent if memory else None,
        memory_available_gb=memory.available_gb if memory else None,
        gpu_vram_total_gb=device.total_mib / MIB_PER_GB if device else 0.0,
        gpu_vram_available_gb=min(device.free_mib, device.total_mib) / MIB_PER_GB if device else 0.0,
        gpu_type=GpuType(device.vendor) if device else GpuType.NONE,
    )
