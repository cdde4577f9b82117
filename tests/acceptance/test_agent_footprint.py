"""What the running agent loads, and what it costs."""

from __future__ import annotations

import os

from tests.agents import Agents, until_sent
from tests.footprint import (
    MOST_CPU_SHARE,
    MOST_PSS_MB,
    MOST_PSS_WITH_GPU_LIBRARY_MB,
    measure_both,
)
from tests.heartbeat_server import HeartbeatServer
from tests.processes import ROOT

FORBIDDEN = {
    *("fastapi", "starlette", "pydantic", "pydantic_settings", "sqlalchemy", "redis", "asyncpg", "uvicorn"),
    *("typer", "rich", "textual", "structlog", "prometheus_client", "httpx", "asyncio", "pynvml", "yaml"),
}


def test_the_running_agent_has_loaded_nothing_heavy(agents: Agents, server: HeartbeatServer) -> None:
    listing = agents.folder / "modules"
    (agents.folder / "sitecustomize.py").write_text(
        "import atexit, pathlib, sys\n"
        f"atexit.register(lambda: pathlib.Path({str(listing)!r}).write_text('\\n'.join(sys.modules)))\n"
    )
    path = os.pathsep.join([str(ROOT), str(agents.folder)])
    with agents.start(server.port, environment={"PYTHONPATH": path}) as agent:
        until_sent(server, 2)
        agent.end()
    loaded = {name.split(".")[0] for name in listing.read_text().splitlines()}
    assert {"workers", "psutil", "msgspec"} <= loaded
    assert not loaded & FORBIDDEN


def test_the_footprint_is_within_its_limits() -> None:
    found = measure_both(40)
    assert {limit for _, limit in found.values()} == {MOST_PSS_MB, MOST_PSS_WITH_GPU_LIBRARY_MB}
    for footprint, limit_mb in found.values():
        assert footprint.pss_mb < limit_mb
        assert footprint.cpu_share < MOST_CPU_SHARE
        assert footprint.request_bytes < 1_500
    assert [footprint.processes for footprint, _ in found.values()] == [1, 2]
