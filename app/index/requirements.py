"""What a server must be like to hold the index. Checked at start, so that a wrong one makes no bad night later."""

from __future__ import annotations

from typing import Any, Final

import redis.asyncio as aredis

from app.errors import StartupRefusedError
from app.index.connect import unavailable

_COMMANDS: Final = ("evalsha", "time", "xautoclaim", "xinfo", "xsetid", "zmscore")
_OLDEST: Final = 7
"""From there on groups count what they have read, and errors in scripts keep their code. Valkey says 7.2."""


async def refuse_unfit_server(client: aredis.Redis) -> None:
    """Looks at the version, the eviction policy and the commands.

    Raises:
        StartupRefusedError: the detail says what to change.
        IndexUnavailableError: nobody answers, so nothing is known.
    """
    with unavailable():
        server: dict[str, Any] = await client.info()
        # In one word: redis-py's own reading of COMMAND INFO fails on a command that is not there.
        known: Any = await client.execute_command("COMMAND INFO", *_COMMANDS)  # type: ignore[no-untyped-call]
    version = str(server.get("redis_version", ""))
    major, _, _ = version.partition(".")
    if major.isdigit() and int(major) < _OLDEST:
        raise StartupRefusedError(f"This server is Redis {version}: use Redis 7.0 or newer, or Valkey.")
    policy = str(server.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction":
        raise StartupRefusedError(
            f"Redis has maxmemory-policy {policy}: it would drop agents, log entries or claims without a word. "
            "Set it to noeviction (CONFIG SET maxmemory-policy noeviction, and in redis.conf)."
        )
    missing = [name for name in _COMMANDS if not _listed(known, name)]
    if missing:
        raise StartupRefusedError(
            f"The server lacks the commands {', '.join(missing)}: use Redis 7.0 or newer, or Valkey, "
            "and allow them in the user's ACL."
        )


def _listed(known: Any, name: str) -> bool:
    """Whether COMMAND INFO knew the command; redis-py gives a mapping, or the plain list with gaps."""
    if isinstance(known, dict):
        return name in known
    return any(entry and entry[0] in (name, name.encode()) for entry in known)
