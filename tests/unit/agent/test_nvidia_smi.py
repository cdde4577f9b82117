"""NVIDIA GPUs through `nvidia-smi`, played by a shell script, in a real child process."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.children import children
from tests.gpus import HASTY_S, open_gpus, sample, sampled_until
from tests.waiting import PATIENCE_S, wait_until
from workers.host_agent.probes.devices import Sample
from workers.host_agent.probes.gpu import Gpus


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Gpus]]:
    """Installs an nvidia-smi with the given shell script, on a machine without the library."""
    opened = []

    def install(script: str, *, deadline_s: float = PATIENCE_S) -> Gpus:
        tool = tmp_path / "bin" / "nvidia-smi"
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
        host_root = tmp_path / "host"
        (host_root / "dev").mkdir(parents=True)
        (host_root / "dev/nvidiactl").touch()
        (host_root / "proc").symlink_to("/proc")
        opened.append(open_gpus(host_root, deadline_s=deadline_s))
        return opened[0]

    yield install
    for gpus in opened:
        gpus.close()
    wait_until(lambda: not children(), what="all children to be gone")


def test_nvidia_smi_is_the_fallback(smi: Callable[[str], Gpus]) -> None:
    gpus = smi(
        "echo '0, GPU-aaa, NVIDIA RTX A4000, 16376, 15000, [N/A]'\n"
        "echo '1, GPU-bbb, \"NVIDIA, with comma\", 81559, 12.0, Disabled'"
    )
    first, second = sample(gpus).devices
    assert (first.number, first.uuid, first.total_mib, first.free_mib) == (0, "GPU-aaa", 16376, 15000)
    assert (second.name, second.total_mib, second.free_mib) == ("NVIDIA, with comma", 81559, 12)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo '0, GPU-a, Titan, 100, [GPU is lost], [N/A]'", "nvidia-smi: GPU 0: [GPU is lost]"),
        ("echo '0, GPU-a, A100, 100, 90, Enabled'", "nvidia-smi: GPU 0: MIG slices are read through NVML only"),
        ("echo 'what is this'", "nvidia-smi: a line that cannot be read"),
        ("echo 'NVIDIA-SMI has failed'; exit 9", "nvidia-smi: status 9: NVIDIA-SMI has failed"),
        ("kill -SEGV $$", "nvidia-smi: status -11"),
    ],
)
def test_what_nvidia_smi_cannot_say_is_a_reason(smi: Callable[[str], Gpus], script: str, reason: str) -> None:
    assert sample(smi(script)) == Sample([], [f"nvidia: {reason}"])


def test_nvidia_smi_without_memory_of_its_own(smi: Callable[[str], Gpus]) -> None:
    (gpu,) = sample(smi("echo '0, GPU-a, NVIDIA GB10, [N/A], [N/A], [N/A]'")).devices
    assert gpu.shared
    assert gpu.total_mib == psutil.virtual_memory().total >> 20


def test_an_nvidia_smi_that_hangs_goes_with_its_child(smi: Callable[..., Gpus], tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    gpus = smi(f"test -e {slow} && sleep 1000\necho '0, GPU-a, Titan, 100, 90, [N/A]'", deadline_s=HASTY_S)
    assert sample(gpus).devices
    slow.touch()
    assert sample(gpus) == Sample([], ["nvidia: no answer within 1 s"])
    names = {process.name() for process in psutil.process_iter() if process.status() != psutil.STATUS_ZOMBIE}
    assert "nvidia-smi" not in names
    slow.unlink()
    assert sampled_until(gpus, lambda again: bool(again.devices)).reasons == []


def test_an_nvidia_smi_does_not_outlive_a_child_that_somebody_else_kills(
    smi: Callable[[str], Gpus], tmp_path: Path
) -> None:
    slow, running = tmp_path / "slow", tmp_path / "running"
    gpus = smi(
        f"test -e {slow} && echo $$ > {running}.new && mv {running}.new {running} && exec sleep 1000\n"
        "echo '0, GPU-a, Titan, 100, 90, [N/A]'"
    )
    assert sample(gpus).devices
    (child,) = children()
    slow.touch()
    (probe,) = [probe for vendor, probe in gpus._probes.items() if vendor == "nvidia"]
    probe.begin(with_processes=False)
    wait_until(running.exists, what="the tool to hang")
    tool = psutil.Process(int(running.read_text()))
    child.kill()
    wait_until(lambda: not tool.is_running() or tool.status() == psutil.STATUS_ZOMBIE, what="the tool's end")


def test_neither_library_nor_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").touch()
    gpus = open_gpus(tmp_path)
    assert sample(gpus) == Sample([], ["nvidia: NVML: library not found, and there is no nvidia-smi"])
    gpus.close()
