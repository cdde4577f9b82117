"""Wires the probes of this machine to a reporter, for the running agent and for `--check`."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from app.errors import StartupRefusedError
from workers.host_agent.busy import BusyCheck
from workers.host_agent.claims_dir import ClaimsDir
from workers.host_agent.clock import Clock
from workers.host_agent.config import Config
from workers.host_agent.heartbeat import Reporter
from workers.host_agent.probes.cgroup import Cgroups
from workers.host_agent.probes.cpu import CpuProbe
from workers.host_agent.probes.gpu import Gpus
from workers.host_agent.probes.memory import read_memory


@contextlib.contextmanager
def open_sensors(config: Config, clock: Clock, *, stopping: Callable[[], bool]) -> Iterator[Reporter]:
    """Yields the machine's reporter; its sampling children end with the context.

    Raises:
        StartupRefusedError: no machine is at `host_root`.
    """
    if config.host_root.root != str(config.host_root):
        _refuse_without_proc(config.host_root)
        psutil.PROCFS_PATH = str(config.host_root / "proc")
    cgroups = Cgroups(config.host_root)
    gpus = Gpus(
        vendors=config.gpu,
        host_root=config.host_root,
        deadline_s=config.gpu_deadline_s,
        start_s=config.gpu_start_s,
        restart_s=config.interval_s,
        shared_memory=config.gpu_shared_memory,
    )
    reporter = Reporter(
        config,
        clock=clock,
        cpu=CpuProbe(clock, cgroups),
        memory=functools.partial(read_memory, cgroups),
        gpus=gpus,
        busy=BusyCheck(config.busy_path, config.busy_when),
        claims=ClaimsDir(config.claims_path, clock),
        stopping=stopping,
    )
    reporter.begin()
    try:
        yield reporter
    finally:
        gpus.close()


def _refuse_without_proc(host_root: Path) -> None:
    try:
        (host_root / "proc/stat").read_bytes()
    except OSError as error:
        raise StartupRefusedError(
            f"host_root: {host_root} does not look like a machine's root ({error.filename}: {error.strerror}); "
            "name the folder at which the host's / is mounted, with --host-root"
        ) from error
