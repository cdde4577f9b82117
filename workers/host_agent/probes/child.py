"""The sampling child: one vendor's probe in a process of its own, which a driver may hang or crash.

It reads one request a line from stdin (`{"id": 1, "processes": false}`), answers one line of JSON to stdout, and
ends with its parent. Run as `python -m workers.host_agent.probes.child VENDOR HOST_ROOT`.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Final, Protocol

from workers.host_agent.probes.devices import Sample

_PR_SET_PDEATHSIG: Final = 1


class GpuProbe(Protocol):
    def sample(self, *, with_processes: bool) -> Sample:
        """Reads all GPUs of the vendor; what cannot be read becomes a reason. May hang or crash."""


def make_probe(vendor: str, host_root: Path) -> GpuProbe:
    if vendor == "nvidia":
        from workers.host_agent.probes.gpu_nvidia import NvidiaProbe  # noqa: PLC0415  # one vendor a child

        return NvidiaProbe(host_root)
    if vendor == "amd":
        from workers.host_agent.probes.gpu_amd import AmdProbe  # noqa: PLC0415  # one vendor a child

        return AmdProbe(host_root)
    from workers.host_agent.probes.gpu_intel import IntelProbe  # noqa: PLC0415  # one vendor a child

    return IntelProbe(host_root)


def main(vendor: str, host_root: Path) -> int:
    if sys.platform == "linux":
        # A parent that is killed while a driver holds us would leave us behind.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    # Drivers print to stdout as they please; the answers get a descriptor that no library knows.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # Ctrl-C in a terminal reaches the whole group; the parent decides when the child ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    probe = make_probe(vendor, host_root)
    for line in sys.stdin:
        request = json.loads(line)
        sample = probe.sample(with_processes=bool(request["processes"]))
        answers.write(
            json.dumps({"id": request["id"], "devices": sample.devices, "reasons": sample.reasons}) + "\n"
        )
        answers.flush()
        if not sample.devices and sample.reasons:
            # Nothing works. A new process may load the libraries that fit the driver by now; this one never will.
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
