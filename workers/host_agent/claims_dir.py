"""Running claims: a file per claim in `claims.d/`, named after the claim, with the pid that works under it.

The file holds a number, or JSON with a `pid` and, better, the time at which that process `started`, in clock ticks
since the machine's start (field 22 of `/proc/PID/stat`), which no step of a clock moves. What the process and its
children use now goes into the heartbeat; a file whose process is gone says nothing, whoever has its pid by then.
"""

from __future__ import annotations

import logging
import os
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
    started: int | None = None


class _CpuUse(NamedTuple):
    at_s: float
    used_s: float


class _Verdict(NamedTuple):
    """What was found out about one writing of a file; `process` is None once its process is known to be gone."""

    written_ns: int
    content: bytes
    process: psutil.Process | None


class ClaimsDir:
    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self._cpu: dict[str, _CpuUse] = {}
        self._verdicts: dict[str, _Verdict] = {}

    def pending(self) -> bool:
        return bool(self._files())

    def read(self, devices: list[Device]) -> tuple[RunningClaim, ...]:
        """What each running claim uses: GPU memory (NVIDIA tells), memory, whole cores since the last reading."""
        claims = []
        cpu: dict[str, _CpuUse] = {}
        verdicts: dict[str, _Verdict] = {}
        for path in self._files():
            verdict = self._judge(path)
            if verdict is None:
                continue
            verdicts[path.name] = verdict
            processes = [] if verdict.process is None else _with_descendants(verdict.process)
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
        self._cpu, self._verdicts = cpu, verdicts
        return tuple(claims)

    def _files(self) -> list[Path]:
        try:
            entries = sorted(path for path in self._folder.iterdir() if _CLAIM_ID.fullmatch(path.name))
        except OSError:
            return []
        return entries[:_MOST_CLAIMS]

    def _judge(self, path: Path) -> _Verdict | None:
        """Whose file this is; None when that cannot be read and never could."""
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                # Opening a named pipe would wait for its writer, for ever.
                return None
            with path.open("rb") as file:
                content = file.read(_LARGEST_FILE_BYTES).strip()
            return self._judge_content(path.name, content, status)
        except (psutil.Error, OSError, ValueError, OverflowError) as error:
            _log.debug("The claim file %s cannot be read: %s", path.name, error)
            # It may be half written at this moment; what was found out stands.
            return self._verdicts.get(path.name)

    def _judge_content(self, name: str, content: bytes, status: os.stat_result) -> _Verdict:
        before = self._verdicts.get(name)
        if before is not None and (before.written_ns, before.content) == (status.st_mtime_ns, content):
            # Once found stays found and once gone stays gone: file times do not move with the machine's clock, and
            # start times do, so that they would not agree after a step of it. is_running() compares start times
            # since the machine's start.
            running = before.process is not None and before.process.is_running()
            return before if running else before._replace(process=None)
        claim = _ClaimFile(int(content)) if content.isdigit() else msgspec.json.decode(content, type=_ClaimFile)
        try:
            process = psutil.Process(claim.pid)
        except psutil.NoSuchProcess:
            return _Verdict(status.st_mtime_ns, content, None)
        if claim.started is not None:
            meant = _started_ticks(claim.pid) == claim.started
        else:
            meant = process.create_time() <= status.st_mtime + _START_SLACK_S
        return _Verdict(status.st_mtime_ns, content, process if meant else None)

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


def _started_ticks(pid: int) -> int:
    """When the process started, in clock ticks since the machine's start; Linux only."""
    line = (Path(psutil.PROCFS_PATH) / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    # Its second field, the name in brackets, may hold anything.
    return int(line.rpartition(")")[2].split()[19])
