"""All GPUs of the machine: which vendors are there, asked side by side, each in its own child."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from workers.host_agent.probes import gpu_amd, gpu_intel, gpu_nvidia
from workers.host_agent.probes.devices import Sample, merge
from workers.host_agent.probes.sampler import IsolatedProbe, spawn_child

# The first heartbeat waits this long for a driver that has to wake its GPUs; a machine that appears a little later
# is better than one that appears without its GPUs.
_FIRST_WAIT_S: Final = 10.0

_PRESENT: Final[Mapping[str, Callable[[Path], bool]]] = {
    "nvidia": gpu_nvidia.present,
    "amd": gpu_amd.present,
    "intel": gpu_intel.present,
}
VENDORS: Final = tuple(_PRESENT)


class Gpus:
    """Samples every vendor that left a trace in the system; a machine without GPUs never starts a child."""

    def __init__(
        self,
        *,
        vendors: tuple[str, ...],
        host_root: Path,
        deadline_s: float,
        start_s: float,
        restart_s: float,
        shared_memory: bool = True,
        present: Mapping[str, Callable[[Path], bool]] = _PRESENT,
    ) -> None:
        self._host_root = host_root
        self._present = present
        self._shared_memory = shared_memory
        self._first = True
        self._probes = {
            vendor: IsolatedProbe(
                vendor,
                spawn=partial(spawn_child, vendor, host_root),
                deadline_s=deadline_s,
                start_s=start_s,
                restart_s=restart_s,
            )
            for vendor in VENDORS
            if vendor in vendors
        }
        self._seen: set[str] = set()

    def sample(self, *, with_processes: bool, stopping: Callable[[], bool]) -> Sample:
        """One look at all GPUs. Returns in time whatever the drivers do; never raises for them."""
        self._seen |= {vendor for vendor in self._probes if self._present[vendor](self._host_root)}
        asked = [probe for vendor, probe in self._probes.items() if vendor in self._seen]
        until_s = time.monotonic() + _FIRST_WAIT_S if self._first else None
        self._first = False
        for probe in asked:
            probe.begin(with_processes=with_processes)
        merged = merge([probe.collect(until_s=until_s, stopping=stopping) for probe in asked])
        if self._shared_memory:
            return merged
        return Sample([device for device in merged.devices if not device.shared], merged.reasons)

    def close(self) -> None:
        for probe in self._probes.values():
            probe.close()
