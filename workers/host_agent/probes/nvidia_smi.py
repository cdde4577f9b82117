"""NVIDIA GPUs through `nvidia-smi`, for machines that have the tool but not the library."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

from app.tether import die_with_parent
from workers.host_agent.probes.devices import MIB, Device, Sample
from workers.host_agent.probes.system_memory import read_system_memory

_QUERY: Final = "index,uuid,name,memory.total,memory.free,mig.mode.current"
# WSL keeps the tool where no search path leads.
_PLACES: Final = ("/usr/lib/wsl/lib",)
# The sampling child is killed before this passes; the limit is for a child that nobody watches any more.
_TIMEOUT_S: Final = 60.0
_ABSENT: Final = "[N/A]"


class _Row(NamedTuple):
    number: str
    uuid: str
    name: str
    total: str
    free: str
    mig: str


class NvidiaSmi:
    def __init__(self, host_root: Path) -> None:
        self._host_root = host_root

    def sample(self) -> Sample:
        path = shutil.which("nvidia-smi", path=os.pathsep.join([os.environ.get("PATH", os.defpath), *_PLACES]))
        if path is None:
            return Sample([], ["NVML: library not found, and there is no nvidia-smi"])
        try:
            done = subprocess.run(  # noqa: S603  # the tool's own absolute path and fixed arguments
                [path, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"],
                capture_output=True,
                check=False,
                timeout=_TIMEOUT_S,
                stdin=subprocess.DEVNULL,
                text=True,
                errors="replace",
                # The agent ends this child with its group; when somebody else does, the tool must not stay behind.
                preexec_fn=die_with_parent() if sys.platform == "linux" else None,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return Sample([], [f"nvidia-smi: {type(error).__name__}"])
        if done.returncode != 0:
            said = (done.stdout or done.stderr).strip().splitlines()
            return Sample([], [f"nvidia-smi: status {done.returncode}{': ' + said[0][:200] if said else ''}"])
        return self._parse(done.stdout)

    def _parse(self, output: str) -> Sample:
        sample = Sample([], [])
        for row in csv.reader(output.splitlines(), skipinitialspace=True):
            if len(row) != len(_Row._fields):
                sample.reasons.append("nvidia-smi: a line that cannot be read")
                continue
            self._add(sample, _Row(*row))
        return sample

    def _add(self, sample: Sample, row: _Row) -> None:
        if row.mig == "Enabled":
            sample.reasons.append(f"nvidia-smi: GPU {row.number}: MIG slices are read through NVML only")
            return
        shared = row.total == _ABSENT
        try:
            if shared:
                total_bytes, free_bytes = read_system_memory(self._host_root)
                total_mib, free_mib = total_bytes // MIB, free_bytes // MIB
            else:
                total_mib, free_mib = int(float(row.total)), int(float(row.free))
            sample.devices.append(
                Device("nvidia", int(row.number), row.uuid, row.name, total_mib, free_mib, shared)
            )
        except ValueError:
            # "[GPU is lost]", "[Unknown Error]" and the like stand where a number should.
            sample.reasons.append(f"nvidia-smi: GPU {row.number}: {row.free[:60]}")
