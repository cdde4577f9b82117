"""Real `headroom agent` processes for tests, in a home of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.heartbeat_server import HeartbeatServer
from tests.processes import ROOT, Headroom
from tests.waiting import PATIENCE_S, wait_until

INTERVAL_S = 0.5


class Agents:
    """Starts agents in a home of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state_dir = folder / "state"

    def start(self, port: int, *arguments: str, environment: dict[str, str] | None = None) -> Headroom:
        fixed = ("--server", f"http://127.0.0.1:{port}", "--state-dir", str(self.state_dir), "--interval-s", "0.5")
        return Headroom("agent", *fixed, *arguments, environment={"HOME": str(self.folder), **(environment or {})})

    def check(
        self, *arguments: str, affinity: set[int] | None = None, environment: dict[str, str] | None = None
    ) -> str:
        """What `headroom agent --check` prints."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADROOM_")}
        done = subprocess.run(
            [
                sys.executable,
                "-P",
                "-m",
                "app",
                "agent",
                "--check",
                "--state-dir",
                str(self.state_dir),
                *arguments,
            ],
            env={**kept, "PYTHONPATH": str(ROOT), "HOME": str(self.folder), **(environment or {})},
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE_S,
            preexec_fn=(lambda: os.sched_setaffinity(0, affinity)) if affinity else None,
        )
        return done.stdout


def until_sent(server: HeartbeatServer, count: int) -> None:
    wait_until(lambda: len(server.received) >= count, what=f"{count} heartbeats")
