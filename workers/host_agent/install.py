"""`headroom agent install`."""

from __future__ import annotations

from app.errors import StartupRefusedError
from workers.host_agent.config import Loaded


def install(loaded: Loaded, *, print_only: bool, enable: bool) -> int:
    raise StartupRefusedError(f"install follows ({len(loaded.sources)}, {print_only}, {enable})")
