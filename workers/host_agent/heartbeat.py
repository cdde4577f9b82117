"""One heartbeat: every probe read once, put together and packed."""

from __future__ import annotations

import itertools
import logging
import uuid
from collections.abc import Callable
from typing import Final, Protocol, TypeVar

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
_log = logging.getLogger("headroom.agent")
_R = TypeVar("_R")
_encoder = msgspec.msgpack.Encoder()


class Report(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of `POST /api/v1/agents/{agent_id}/heartbeat`, and `gpu_reason` for people who look at the wire."""

    agent_type: str = DEFAULT_AGENT_TYPE
    pool_name: str = DEFAULT_POOL_NAME
    hostname: str = ""
    status: AgentStatus = AgentStatus.ONLINE
    boot_id: str
    seq: int
    sent_at: str
    gpus: tuple[Gpu, ...] = ()
    running_claims: tuple[RunningClaim, ...] = ()
    resource_metrics: ResourceMetrics | None
    gpu_reason: str | None = None


class CpuSource(Protocol):
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
        self._last_reasons: list[str] = []

    def report(self) -> Report:
        sample = self._gpus.sample(with_processes=self._claims.pending(), stopping=self._stopping)
        self._tell_changes(sample.reasons)
        return self._make(
            status=AgentStatus.BUSY if self._busy.busy() else AgentStatus.ONLINE,
            gpus=tuple(map(_gpu, sample.devices)),
            running_claims=self._claims.read(sample.devices),
            resource_metrics=_metrics(self._read(self._cpu.read), self._read(self._memory), sample),
            gpu_reason="; ".join(sample.reasons)[:_LONGEST_REASON] or None,
        )

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
            sent_at=self._clock.wall().isoformat(timespec="milliseconds"),
            gpus=gpus,
            running_claims=running_claims,
            resource_metrics=resource_metrics,
            gpu_reason=gpu_reason,
        )

    def _read(self, probe: Callable[[], _R]) -> _R | None:
        """None where the system does not give its figures: a heartbeat with gaps is better than silence."""
        try:
            return probe()
        except (OSError, ValueError, RuntimeError) as error:
            # RuntimeError is psutil's word for a /proc that is not as it expects.
            _log.warning("A probe failed: %s: %s", type(error).__name__, error)
            return None

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


def _metrics(cpu: CpuReading | None, memory: MemoryReading | None, sample: Sample) -> ResourceMetrics:
    device = best(sample.devices)
    return ResourceMetrics(
        cpu_percent=cpu.percent if cpu else None,
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
