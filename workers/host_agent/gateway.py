"""`headroom agent gateway`."""

from __future__ import annotations

from app.errors import StartupRefusedError
from workers.host_agent.config import Config


def serve(config: Config) -> int:
    raise StartupRefusedError(f"the gateway follows ({config.gateway_listen})")
