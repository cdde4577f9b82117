"""What the control groups around the agent allow: in a container, its limits are what tasks there get.

Limits of the agent's own systemd service are left out: they are for the agent, and no task runs under them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_UNLIMITED_BYTES = 1 << 60  # version 1 writes "no limit" as the largest page-aligned number


class CpuQuota(NamedTuple):
    """A quota around the agent; `group` is the folder it stands in, `used_s` the CPU time used there so far."""

    group: str
    cores: float
    used_s: float


class MemoryLimit(NamedTuple):
    """Bytes; `used` leaves out what the kernel would give back at once."""

    limit: int
    used: int


class Cgroups:
    """Reads versions 1 and 2, also where a container sees only its own part of the tree."""

    def __init__(self, host_root: Path = Path("/"), proc_self: Path = Path("/proc/self")) -> None:
        self._mount = host_root / "sys/fs/cgroup"
        self._proc_self = proc_self

    def cpu_quotas(self) -> list[CpuQuota]:
        """All quotas on the way up: a wide one that the neighbours use up can leave less than a narrow one."""
        found = []
        for folder in self._folders(""):
            quota, _, period = _read(folder / "cpu.max").partition(" ")
            if _number(quota) and _number(period):
                used_s = _stat(folder / "cpu.stat").get("usage_usec", 0) / 1e6
                found.append(CpuQuota(str(folder), _number(quota) / _number(period), used_s))
        for folder in self._folders("cpu"):
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
            if _number(quota) and _number(period):
                used_s = _number(_read(folder / "cpuacct.usage")) / 1e9
                found.append(CpuQuota(str(folder), _number(quota) / _number(period), used_s))
        return found

    def memory_limit(self) -> MemoryLimit | None:
        found = []
        for folder in self._folders(""):
            limit = _read(folder / "memory.max")
            if limit.isdigit():
                reclaimable = _stat(folder / "memory.stat").get("inactive_file", 0)
                used = _number(_read(folder / "memory.current"))
                found.append(MemoryLimit(int(limit), used - reclaimable))
        for folder in self._folders("memory"):
            limit = _read(folder / "memory.limit_in_bytes")
            if limit.isdigit() and int(limit) < _UNLIMITED_BYTES:
                reclaimable = _stat(folder / "memory.stat").get("total_inactive_file", 0)
                used = _number(_read(folder / "memory.usage_in_bytes"))
                found.append(MemoryLimit(int(limit), used - reclaimable))
        return min(found, key=lambda memory: memory.limit - memory.used, default=None)

    def _folders(self, controller: str) -> Iterator[Path]:
        """The agent's group and all above it; `controller` empty means version 2."""
        for line in _read(self._proc_self / "cgroup").splitlines():
            number, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if not number.isdigit() or controller not in controllers.split(","):
                continue
            for mount in self._mounts(controllers):
                group = mount / path.strip("/")
                if not group.is_dir():
                    # A container with the host's paths but only its own part of the tree.
                    group = mount
                while True:
                    if group.suffix != ".service":
                        yield group
                    if group == mount:
                        break
                    group = group.parent

    def _mounts(self, controllers: str) -> list[Path]:
        names = ["", "unified"] if not controllers else [controllers, *controllers.split(",")]
        return (
            [self._mount / name for name in names if (self._mount / name).is_dir()][:1]
            if controllers
            else [self._mount / name for name in names if (self._mount / name / "cgroup.controllers").exists()][:1]
        )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(text: str) -> int:
    """0 for what is none: "max", -1, and files that are not there."""
    return int(text) if text.isascii() and text.isdigit() else 0


def _stat(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in _read(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
