"""CPU: cores, load and what of the cores is free."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

import psutil

from workers.host_agent.clock import Clock
from workers.host_agent.probes.cgroup import Cgroups, CpuQuota

MAX_CORES = 65_536


class CpuReading(NamedTuple):
    """`limits` names what makes fewer cores available than the load alone would; for `--check`."""

    cores_physical: int
    cores_available: int
    load_1min: float
    load_5min: float
    limits: tuple[str, ...] = ()


def cores_available(physical: int, load_1min: float) -> int:
    """The cores that the load leaves free, to the nearest whole one, so that an idle machine shows all of them."""
    return min(max(int(physical - load_1min + 0.5), 0), physical)


class CpuProbe:
    """Figures between two readings (percent, use of a quota) mean something from the second reading on."""

    def __init__(self, clock: Clock, cgroups: Cgroups, sys_cpu: Path = Path("/sys/devices/system/cpu")) -> None:
        self._clock = clock
        self._cgroups = cgroups
        self._sys_cpu = sys_cpu
        self._physical = 0
        self._logical: int | None = None
        self._quotas: dict[str, CpuQuota] = {}
        self._quotas_read_s = 0.0
        self._times: tuple[float, float] | None = None

    def percent(self) -> float:
        return float(psutil.cpu_percent(interval=None))

    def read(self) -> CpuReading:
        load_1min, load_5min, _ = psutil.getloadavg()
        physical = self._count_physical()
        free = cores_available(physical, load_1min)
        limits = []
        for name, cores in (("quota", self._free_of_quotas()), ("affinity", self._free_of_pinned())):
            if cores is not None and cores < free:
                limits.append(f"{name} leaves {cores}")
                free = cores
        return CpuReading(
            cores_physical=physical,
            cores_available=free,
            load_1min=round(load_1min, 2),
            load_5min=round(load_5min, 2),
            limits=tuple(limits),
        )

    def _count_physical(self) -> int:
        """The hardware's cores; counted again only when processors came or went, since that reads many files."""
        logical = os.cpu_count()
        if logical != self._logical or not self._physical:
            self._logical = logical
            # psutil would count what is left of processors that are switched off.
            cores = {siblings for cpu in self._online() if (siblings := self._siblings(cpu))}
            self._physical = min(len(cores) or psutil.cpu_count(logical=False) or logical or 1, MAX_CORES)
        return self._physical

    def _free_of_quotas(self) -> int | None:
        """Cores that the quota with the least room leaves after what its members used since the last reading.

        To the nearest whole one, as with the load: the agent is a member too, and what little it uses is no core.
        """
        before, before_s = self._quotas, self._quotas_read_s
        self._quotas = {quota.group: quota for quota in self._cgroups.cpu_quotas()}
        self._quotas_read_s = self._clock.now_s()
        passed_s = self._quotas_read_s - before_s
        free = []
        for quota in self._quotas.values():
            last = before.get(quota.group)
            used_cores = 0.0
            if last is not None and last.cores == quota.cores and passed_s > 0:
                used_cores = max(quota.used_s - last.used_s, 0.0) / passed_s
            free.append(min(max(int(quota.cores - used_cores + 0.5), 0), int(quota.cores)))
        return min(free, default=None)

    def _pinned_to(self) -> frozenset[int] | None:
        """The processors this process may use, where that is not all of them."""
        if sys.platform != "linux":
            return None
        allowed = frozenset(os.sched_getaffinity(0))
        return allowed if len(allowed) < (os.cpu_count() or 1) else None

    def _free_of_pinned(self) -> int | None:
        """Whole cores idle among the processors this process may use; the load average counts the others too."""
        allowed = self._pinned_to()
        if allowed is None:
            self._times = None
            return None
        now = self._busy_and_total(allowed)
        before, self._times = self._times or now, now
        cores = len({self._siblings(cpu) or str(cpu) for cpu in allowed})
        busy, total = now[0] - before[0], now[1] - before[1]
        return int(cores * (1 - (busy / total if total > 0 else 0.0)) + 0.5)

    def _busy_and_total(self, allowed: frozenset[int]) -> tuple[float, float]:
        every = psutil.cpu_times(percpu=True)
        # The kernel lists the times of processors that are on, and not under which number.
        online = self._online()
        numbers = online if len(online) == len(every) else range(len(every))
        busy = total = 0.0
        for cpu, times in zip(numbers, every, strict=True):
            if cpu in allowed:
                idle = times.idle + getattr(times, "iowait", 0.0)
                # guest time is counted within user time
                everything = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
                total += everything
                busy += everything - idle
        return busy, total

    def _online(self) -> list[int]:
        """The numbers of the processors that are on; none where the system does not list them."""
        found: list[int] = []
        for part in _read_line(self._sys_cpu / "online").split(","):
            first, _, last = part.partition("-")
            if first.isdigit() and (last or first).isdigit():
                found += range(int(first), int(last or first) + 1)
        return found

    def _siblings(self, cpu: int) -> str:
        """Names the core that the processor belongs to, by all of the core's processors."""
        topology = self._sys_cpu / f"cpu{cpu}/topology"
        return _read_line(topology / "core_cpus_list") or _read_line(topology / "thread_siblings_list")


def _read_line(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
