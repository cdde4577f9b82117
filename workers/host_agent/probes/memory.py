"""Main memory: what a new task could use without swapping."""

from __future__ import annotations

from typing import Final, NamedTuple

import psutil

from workers.host_agent.probes.cgroup import Cgroups

_GIB: Final = 1 << 30


class MemoryReading(NamedTuple):
    """GB means GiB. `limited` tells that a control group's limit is tighter than the machine's memory."""

    percent: float
    available_gb: float
    total_gb: float
    limited: bool = False


def read_memory(cgroups: Cgroups) -> MemoryReading:
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    limit = cgroups.memory_limit()
    limited = limit is not None and limit.limit < total
    if limit is not None:
        total = min(total, limit.limit)
        available = max(min(available, limit.limit - limit.used), 0)
    # Two decimals: the server need not write anew for a megabyte that comes and goes.
    return MemoryReading(
        percent=round(100 * (total - available) / total, 1) if total else 0.0,
        available_gb=round(available / _GIB, 2),
        total_gb=round(total / _GIB, 2),
        limited=limited,
    )
