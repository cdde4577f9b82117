"""An agent's home, and a server for it to report to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agents import INTERVAL_S, Agents
from tests.heartbeat_server import HeartbeatServer, Reply, heartbeat_server


@pytest.fixture
def server() -> Iterator[HeartbeatServer]:
    with heartbeat_server() as running:
        running.reply = lambda _: Reply(body={"stream_id": "1-0", "next_heartbeat_s": INTERVAL_S})
        yield running


@pytest.fixture
def agents(tmp_path: Path) -> Agents:
    return Agents(tmp_path)
