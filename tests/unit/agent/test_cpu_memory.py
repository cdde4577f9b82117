"""CPU and memory: the rules on figures, and what control groups and affinity take away."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.host_agent.clock import SystemClock
from workers.host_agent.probes.cgroup import Cgroups, CpuQuota, MemoryLimit
from workers.host_agent.probes.cpu import CpuProbe, cores_available
from workers.host_agent.probes.memory import read_memory

GIB = 1 << 30
NO_TOPOLOGY = Path("/nonexistent")
NO_GROUPS = Cgroups(Path("/nonexistent"), Path("/nonexistent"))


class Clock(SystemClock):
    """Stands still unless told."""

    def __init__(self) -> None:
        self.time_s = 1000.0

    def now_s(self) -> float:
        return self.time_s


@pytest.mark.parametrize(
    ("physical", "load", "free"),
    [(8, 0.0, 8), (8, 0.3, 8), (8, 0.6, 7), (8, 2.0, 6), (8, 7.4, 1), (8, 7.6, 0), (8, 400.0, 0), (1, 0.5, 1)],
)
def test_available_cores_are_what_the_load_leaves(physical: int, load: float, free: int) -> None:
    assert cores_available(physical, load) == free


@given(physical=st.integers(1, 65_536), load=st.floats(min_value=0, max_value=1e6))
def test_available_cores_are_a_whole_number_up_to_the_physical_count(physical: int, load: float) -> None:
    free = cores_available(physical, load)
    assert isinstance(free, int)
    assert 0 <= free <= physical
    assert abs(free - max(physical - load, 0)) <= 0.5 + 1e-6


def group(root: Path, path: str, **files: str) -> Path:
    folder = root / "sys/fs/cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content + "\n")
    return folder


def in_group(root: Path, lines: str) -> Cgroups:
    (root / "self").mkdir(exist_ok=True)
    (root / "self/cgroup").write_text(lines)
    return Cgroups(root, root / "self")


def test_version_2_counts_the_tightest_limit_on_the_way_up(tmp_path: Path) -> None:
    group(tmp_path, "", cgroup__controllers="cpu memory")
    group(tmp_path, "a.slice", cpu__max="400000 100000", memory__max="max")
    group(
        tmp_path,
        "a.slice/box",
        cpu__max="max 100000",
        cpu__stat="usage_usec 7000000\nuser_usec 1",
        memory__max=str(8 * GIB),
        memory__current=str(3 * GIB),
        memory__stat=f"anon 1\ninactive_file {GIB}",
    )
    (tmp_path / "sys/fs/cgroup/a.slice/cpu.stat").write_text("usage_usec 9000000\n")
    groups = in_group(tmp_path, "0::/a.slice/box\n")
    folder = tmp_path / "sys/fs/cgroup"
    assert groups.cpu_quotas() == [CpuQuota(str(folder / "a.slice"), 4.0, 9.0)]
    assert groups.memory_limit() == MemoryLimit(8 * GIB, 2 * GIB)


def test_version_1(tmp_path: Path) -> None:
    group(tmp_path, "cpu,cpuacct/box", cpu__cfs_quota_us="150000", cpu__cfs_period_us="100000")
    group(tmp_path, "cpu,cpuacct/box", cpuacct__usage="5000000000")
    group(tmp_path, "cpu,cpuacct", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    group(
        tmp_path,
        "memory/box",
        memory__limit_in_bytes=str(2 * GIB),
        memory__usage_in_bytes=str(GIB),
        memory__stat=f"total_inactive_file {GIB // 2}",
    )
    group(tmp_path, "memory", memory__limit_in_bytes="9223372036854771712")
    groups = in_group(tmp_path, "4:memory:/box\n3:cpu,cpuacct:/box\n")
    assert groups.cpu_quotas() == [CpuQuota(str(tmp_path / "sys/fs/cgroup/cpu,cpuacct/box"), 1.5, 5.0)]
    assert groups.memory_limit() == MemoryLimit(2 * GIB, GIB // 2)


def test_a_container_that_sees_only_its_own_part_of_the_tree(tmp_path: Path) -> None:
    group(tmp_path, "", cgroup__controllers="cpu", cpu__max="200000 100000", cpu__stat="usage_usec 0")
    groups = in_group(tmp_path, "0::/docker/0123/where/the/host/has/it\n")
    assert groups.cpu_quotas() == [CpuQuota(str(tmp_path / "sys/fs/cgroup"), 2.0, 0.0)]


def test_limits_of_the_agents_own_service_are_not_the_machines(tmp_path: Path) -> None:
    group(tmp_path, "", cgroup__controllers="cpu memory")
    group(tmp_path, "system.slice/headroom-agent.service", cpu__max="5000 100000", memory__max=str(GIB // 4))
    groups = in_group(tmp_path, "0::/system.slice/headroom-agent.service\n")
    assert groups.cpu_quotas() == []
    assert groups.memory_limit() is None


@pytest.mark.parametrize("lines", ["", "0::/\n", "1:name=systemd:/x\n0::/\n"])
def test_without_limits_there_are_none(tmp_path: Path, lines: str) -> None:
    group(tmp_path, "", cgroup__controllers="cpu memory")
    groups = in_group(tmp_path, lines)
    assert groups.cpu_quotas() == []
    assert groups.memory_limit() is None


@pytest.fixture
def idle_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 cores, no load."""
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 32 if logical else 16)
    monkeypatch.setattr(psutil, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 32)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(32)))


@pytest.mark.usefixtures("idle_machine")
def test_a_quota_lowers_only_what_is_available_by_what_its_members_use(tmp_path: Path) -> None:
    group(tmp_path, "", cgroup__controllers="cpu", cpu__max="600000 100000", cpu__stat="usage_usec 0")
    clock = Clock()
    probe = CpuProbe(clock, in_group(tmp_path, "0::/\n"), NO_TOPOLOGY)
    probe.read()
    clock.time_s += 10
    (tmp_path / "sys/fs/cgroup/cpu.stat").write_text("usage_usec 27000000\n")
    reading = probe.read()
    assert (reading.cores_physical, reading.cores_available) == (16, 3)
    assert reading.limits == ("quota leaves 3",)
    clock.time_s += 10
    (tmp_path / "sys/fs/cgroup/cpu.stat").write_text("usage_usec 27010000\n")
    assert probe.read().cores_available == 6, "what the agent itself uses takes no core"
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("max 100000\n")
    assert probe.read().cores_available == 16


@pytest.mark.usefixtures("idle_machine")
def test_the_quota_with_the_least_left_counts_and_not_the_smallest(tmp_path: Path) -> None:
    """The neighbours in a wide group may leave less of it than the agent's own narrow one has."""
    group(tmp_path, "", cgroup__controllers="cpu")
    group(tmp_path, "team", cpu__max="800000 100000", cpu__stat="usage_usec 0")
    group(tmp_path, "team/box", cpu__max="400000 100000", cpu__stat="usage_usec 0")
    clock = Clock()
    probe = CpuProbe(clock, in_group(tmp_path, "0::/team/box\n"), NO_TOPOLOGY)
    assert probe.read().cores_available == 4
    clock.time_s += 10
    (tmp_path / "sys/fs/cgroup/team/cpu.stat").write_text("usage_usec 70000000\n")
    assert probe.read().cores_available == 1
    clock.time_s += 10
    assert probe.read().cores_available == 4


@pytest.mark.parametrize("content", ["", "max", "100000", "100000 0", "abc def", "-1 100000", "\0"])
def test_a_quota_that_makes_no_sense_is_none(tmp_path: Path, content: str) -> None:
    group(tmp_path, "", cgroup__controllers="cpu", cpu__max=content)
    group(tmp_path, "cpu", cpu__cfs_quota_us=content, cpu__cfs_period_us="0")
    assert in_group(tmp_path, "0::/\nnonsense\n:::\n3:cpu:/\n").cpu_quotas() == []


def hyperthreaded(sys_cpu: Path, cores: int, online: str) -> Path:
    """Processors n and n + cores share a core; all keep their folder, as some kernels leave it."""
    for cpu in range(2 * cores):
        folder = sys_cpu / f"cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "core_cpus_list").write_text(f"{cpu % cores},{cpu % cores + cores}\n")
    (sys_cpu / "online").write_text(online + "\n")
    return sys_cpu


@pytest.mark.usefixtures("idle_machine")
@pytest.mark.parametrize(("online", "cores"), [("0-15", 8), ("0-7", 8), ("0-2,8-11", 4), ("0", 1), ("", 16)])
def test_processors_that_are_switched_off_do_not_count(tmp_path: Path, online: str, cores: int) -> None:
    sys_cpu = hyperthreaded(tmp_path, 8, online)
    assert CpuProbe(Clock(), NO_GROUPS, sys_cpu).read().cores_physical == cores


@pytest.mark.usefixtures("idle_machine")
def test_the_times_of_a_processor_are_found_beside_one_that_is_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sys_cpu = hyperthreaded(tmp_path, 4, "0,2-3")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3})
    # Processor 0 is busy, and second in the list is processor 2.
    monkeypatch.setattr(
        psutil, "cpu_times", lambda percpu: [_Times(100.0, 0.0), _Times(0.0, 100.0), _Times(0.0, 100.0)]
    )
    assert CpuProbe(Clock(), NO_GROUPS, sys_cpu).read().limits == ("affinity leaves 2",)


class _Times(NamedTuple):
    user: float
    idle: float


@pytest.mark.usefixtures("idle_machine")
def test_affinity_lowers_only_what_is_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cpu in range(32):
        folder = tmp_path / f"cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "core_cpus_list").write_text(f"{cpu % 16},{cpu % 16 + 16}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 16, 17, 2})
    passed_s = 10.0
    real = psutil.cpu_times

    def times(percpu: bool = False) -> object:  # noqa: FBT001, FBT002  # psutil's own signature
        if not percpu:
            return real()
        return [_Times(passed_s, 0.0) if cpu == 2 else _Times(0.0, passed_s) for cpu in range(32)]

    monkeypatch.setattr(psutil, "cpu_times", times)
    probe = CpuProbe(Clock(), NO_GROUPS, tmp_path)
    reading = probe.read()
    assert (reading.cores_physical, reading.cores_available) == (16, 3)
    assert reading.limits == ("affinity leaves 3",)
    passed_s = 20.0
    assert probe.read().cores_available == 2, "a fifth of the allowed processors has been busy since"


@pytest.mark.usefixtures("idle_machine")
def test_the_physical_count_is_read_again_when_processors_come(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = CpuProbe(Clock(), NO_GROUPS, NO_TOPOLOGY)
    assert probe.read().cores_physical == 16
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 64 if logical else 48)
    assert probe.read().cores_physical == 16
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert probe.read().cores_physical == 48


@pytest.mark.usefixtures("idle_machine")
def test_a_machine_that_hides_its_cores_counts_its_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 32 if logical else None)
    assert CpuProbe(Clock(), NO_GROUPS, NO_TOPOLOGY).read().cores_physical == 32


def test_memory_of_the_machine() -> None:
    reading = read_memory(NO_GROUPS)
    memory = psutil.virtual_memory()
    assert reading.total_gb == pytest.approx(memory.total / GIB, abs=0.01)
    assert reading.available_gb == pytest.approx(memory.available / GIB, rel=0.1)
    assert reading.percent == pytest.approx(100 * (1 - memory.available / memory.total), abs=5)
    assert not reading.limited


def test_memory_within_a_limit(tmp_path: Path) -> None:
    group(tmp_path, "", cgroup__controllers="memory")
    group(tmp_path, "box", memory__max=str(GIB), memory__current=str(GIB // 4), memory__stat="inactive_file 0")
    reading = read_memory(in_group(tmp_path, "0::/box\n"))
    assert (reading.total_gb, reading.available_gb, reading.percent) == (1.0, 0.75, 25.0)
    assert reading.limited


def test_a_limit_that_is_used_up_leaves_nothing(tmp_path: Path) -> None:
    group(tmp_path, "", cgroup__controllers="memory")
    group(tmp_path, "box", memory__max=str(GIB), memory__current=str(2 * GIB))
    assert read_memory(in_group(tmp_path, "0::/box\n")).available_gb == 0.0
