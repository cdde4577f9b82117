"""The redis-cli lines that pages show beside what they show. docs/redis.md has them, and a test runs those."""

from __future__ import annotations

import shlex
from urllib.parse import urlsplit

from app.index.keys import Keys


def redis_lines(redis_url: str, *, shard: int | None = None) -> dict[str, str]:
    """Lines to copy, by the view they belong to. TYPE, VRAM, CORES and AGENT stand for what the view is about.

    The name of a pool follows at the end of `find` and `pool`, where one is wanted.
    """
    cli, keys = redis_cli(redis_url), Keys(shard)
    return {
        "find": f"{cli} FCALL_RO headroom_find 1 {keys.prefix} TYPE VRAM CORES 10",
        "agent": f"{cli} FCALL_RO headroom_agent 1 {keys.prefix} AGENT",
        "pools": f"{cli} ZREVRANGE {keys.pools('TYPE')} 0 -1 WITHSCORES",
        "health": f"{cli} XINFO GROUPS {keys.heartbeats}",
        "waiting": f"{cli} XREVRANGE {keys.events} + - COUNT 10",
    }


def redis_cli(redis_url: str) -> str:
    """How a person reaches the server, without a password that would stay in the terminal's history."""
    parts = urlsplit(redis_url)
    if parts.scheme == "unix":
        return f"redis-cli -s {shlex.quote(parts.path)}"
    plain = parts.scheme == "redis" and parts.path in {"", "/", "/0"} and not parts.username and not parts.query
    if plain and parts.hostname in {"127.0.0.1", "localhost"} and not parts.password:
        return f"redis-cli -p {parts.port or 6379}"
    host = parts.netloc.rpartition("@")[2]
    bare = shlex.quote(parts._replace(netloc=host, query="").geturl())
    user = f" --user {shlex.quote(parts.username)}" if parts.username else ""
    return f"redis-cli{user} --askpass -u {bare}" if parts.password else f"redis-cli -u {bare}"
