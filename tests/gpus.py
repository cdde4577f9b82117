"""GPUs as an agent samples them, with the short deadlines of tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.waiting import PATIENCE_S, wait_until
from workers.host_agent.probes.devices import Sample
from workers.host_agent.probes.gpu import Gpus

HASTY_S = 1.0
"""A deadline for what hangs; others have all the time they need."""


def open_gpus(host_root: Path, *, deadline_s: float = PATIENCE_S, restart_s: float = 0.05) -> Gpus:
    return Gpus(
        vendors=("nvidia",),
        host_root=host_root,
        deadline_s=deadline_s,
        start_s=PATIENCE_S,
        restart_s=restart_s,
    )


def sample(gpus: Gpus, *, with_processes: bool = False) -> Sample:
    return gpus.sample(with_processes=with_processes, stopping=lambda: False)


def sampled_until(gpus: Gpus, wanted: Callable[[Sample], bool]) -> Sample:
    """Samples like an impatient agent until the answer is as wanted."""
    found = Sample([], [])

    def look() -> bool:
        nonlocal found
        found = sample(gpus)
        return wanted(found)

    wait_until(look, interval_s=0.05, what="the sample")
    return found
