"""The rules about a sampling child that only a faked process can break: one that cannot be killed or started."""

from __future__ import annotations

import io
import os
import subprocess
from typing import IO

import pytest

from workers.host_agent.probes import sampler
from workers.host_agent.probes.devices import Sample
from workers.host_agent.probes.sampler import ChildProcess, IsolatedProbe


class StuckInTheKernel:
    """Takes requests, answers none, and survives SIGKILL until `free` is set."""

    pid = 2**31 - 1  # nobody's

    def __init__(self) -> None:
        self.read_end, write_end = os.pipe()
        self.stdin: IO[bytes] | None = os.fdopen(write_end, "wb")
        self.stdout: IO[bytes] | None = io.BytesIO()
        self.free = False

    def poll(self) -> int | None:
        return -9 if self.free else None

    def wait(self, timeout: float | None = None) -> int:
        if not self.free:
            raise subprocess.TimeoutExpired("child", timeout or 0.0)
        return -9

    def kill(self) -> None:
        """Nothing happens."""


@pytest.fixture(autouse=True)
def _no_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """The faked process's output never ends, and never says anything."""
    monkeypatch.setattr(sampler, "_read_lines", lambda *_: None)


def test_a_child_that_cannot_be_killed_is_waited_for_and_not_doubled() -> None:
    now_s = 0.0
    started: list[StuckInTheKernel] = []

    def spawn() -> ChildProcess:
        started.append(StuckInTheKernel())
        return started[-1]

    probe = IsolatedProbe("amd", spawn=spawn, deadline_s=1, start_s=5, restart_s=1, now_s=lambda: now_s)
    for _ in range(20):
        probe.begin(with_processes=False)
        assert probe.collect(until_s=None, stopping=lambda: False).devices == []
        now_s += 10
    assert len(started) == 1
    started[0].free = True
    probe.begin(with_processes=False)
    assert len(started) == 2
    started[1].free = True
    probe.close()
    for child in started:
        os.close(child.read_end)


def test_a_child_that_cannot_be_started_is_a_reason() -> None:
    def spawn() -> ChildProcess:
        raise OSError(11, "Resource temporarily unavailable")

    probe = IsolatedProbe("nvidia", spawn=spawn, deadline_s=1, start_s=5, restart_s=1)
    probe.begin(with_processes=False)
    reason = "nvidia: the sampling child cannot be started: Resource temporarily unavailable"
    assert probe.collect(until_s=None, stopping=lambda: False) == Sample([], [reason])
