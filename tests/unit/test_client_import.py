"""A planner's hot path loads what it needs and nothing else. Modules are counted, not milliseconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SERVICE = {"fastapi", "starlette", "pydantic", "pydantic_settings", "sqlalchemy", "prometheus_client", "structlog"}
EVERYTHING = SERVICE | {"redis", "hiredis", "httpx", "asyncio", "ssl", "uvicorn", "typer", "rich"}


@pytest.mark.parametrize(
    ("statement", "needless"),
    [
        ("pass", EVERYTHING),
        ("app.client.CapacityClient('redis://127.0.0.1:1')", SERVICE | {"httpx"}),
        ("app.client.AsyncCapacityClient('redis://127.0.0.1:1')", SERVICE | {"httpx"}),
        ("app.client.CapacityClient('http://127.0.0.1:1')", SERVICE | {"redis", "hiredis"}),
        (
            "app.client.AsyncCapacityClient('http://127.0.0.1:1')",
            SERVICE | {"redis", "hiredis"},
        ),
    ],
)
def test_nothing_needless_is_loaded(statement: str, needless: set[str]) -> None:
    told = subprocess.run(
        [sys.executable, "-c", f"import sys, app.client; {statement}; print(*sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    loaded = {name.partition(".")[0] for name in told.stdout.split()}
    assert not loaded & needless
