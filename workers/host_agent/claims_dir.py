"""Running claims: a file per claim in `claims.d/`, named after the claim, with the pid that works under it.

The file holds a number, or JSON with a `pid`. What the process and its children use now goes into the heartbeat;
a file whose process is gone says nothing.
"""

from __future__ import annotations

import logging
import re
import stat
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import psutil

from app.models.heartbeat import RunningClaim
from workers.host_agent.clock import Clock
from workers.host_agent.probes.devices import MIB_PER_GB, Device

_CLAIM_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_MOST_CLAIMS: Final = 256
_LARGEST_FILE_BYTES: Final = 4096
_GIB: Final = 1 << 30
# A file written a moment before its process counts as that process's.
_START_SLACK_S: Final = 5.0
_log = logging.getLogger("headroom.agent")


class _ClaimFile(msgspec.Struct, frozen=True):
    pid: int


class _CpuUse(NamedTuple):
    at_s: float
    used_s: float


class _Trusted(NamedTuple):
    """A file that was found to be about this process."""

    written_ns: int
    process: psutil.Process


class ClaimsDir:
    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self._cpu: dict[str, _CpuUse] = {}
        self._trusted: dict[str, _Trusted] = {}

    def pending(self) -> bool:
        return bool(self._files())

    def read(self, devices: list[Device]) -> tuple[RunningClaim, ...]:
        """What each running claim uses: GPU memory (NVIDIA tells), memory, whole cores since the last reading."""
        claims = []
        cpu: dict[str, _CpuUse] = {}
        trusted: dict[str, _Trusted] = {}
        for path in self._files():
            found = self._process(path)
            if found is None:
                continue
            trusted[path.name] = found
            processes = _with_descendants(found.process)
            if not processes:
                continue
            used_mib = sum(
                device.used_by_pid.get(str(process.pid), 0) for device in devices for process in processes
            )
            memory_bytes, use = self._usage(processes)
            before = self._cpu.get(path.name)
            cpu[path.name] = use
            passed_s = use.at_s - before.at_s if before else 0.0
            cores = (use.used_s - before.used_s) / passed_s if before and passed_s > 0 else 0.0
            claims.append(
                RunningClaim(
                    claim_id=path.name,
                    gpu_vram_gb=used_mib / MIB_PER_GB,
                    cpu_cores=max(int(cores + 0.5), 0),
                    memory_gb=round(memory_bytes / _GIB, 2),
                )
            )
        self._cpu, self._trusted = cpu, trusted
        return tuple(claims)

    def _files(self) -> list[Path]:
        try:
            entries = sorted(path for path in self._folder.iterdir() if _CLAIM_ID.fullmatch(path.name))
        except OSError:
            return []
        return entries[:_MOST_CLAIMS]

    def _process(self, path: Path) -> _Trusted | None:
        """The claim's process; None when it is gone or its number is another's by now."""
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                # Opening a named pipe would wait for its writer, for ever.
                return None
            with path.open("rb") as file:
                content = file.read(_LARGEST_FILE_BYTES).strip()
            pid = int(content) if content.isdigit() else msgspec.json.decode(content, type=_ClaimFile).pid
            process = psutil.Process(pid)
            before = self._trusted.get(path.name)
            # Start times move with the machine's clock and file times do not: what was once found stays found.
            if before is not None and (before.written_ns, before.process) == (status.st_mtime_ns, process):
                return before
            if process.create_time() > status.st_mtime + _START_SLACK_S:
                return None
            return _Trusted(status.st_mtime_ns, process)
        except psutil.Error:
            return None
        except (OSError, ValueError, OverflowError) as error:
            _log.debug("The claim file %s cannot be read: %s", path.name, error)
            return None

    def _usage(self, processes: list[psutil.Process]) -> tuple[int, _CpuUse]:
        memory_bytes, used_s = 0, 0.0
        for process in processes:
            try:
                with process.oneshot():
                    memory_bytes += process.memory_info().rss
                    times = process.cpu_times()
                    used_s += times.user + times.system
            except psutil.Error:
                # It ended between the listing and now.
                continue
        return memory_bytes, _CpuUse(self._clock.now_s(), used_s)


def _with_descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []
