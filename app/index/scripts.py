"""Typed callers of the Lua scripts in `scripts/`: one verb each. Data travels in arguments only."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib import resources
from typing import Any, Final

import msgspec
import redis.asyncio as aredis
from redis.exceptions import NoScriptError

_INCLUDE: Final = re.compile(r"^--!include (.+)$", re.MULTILINE)

Argument = str | bytes | int | float


class Script(msgspec.Struct, frozen=True):
    name: str
    source: str
    sha: str


@cache
def load(name: str) -> Script:
    """Reads `name.lua` with its includes put in place."""
    folder = resources.files("app.index") / "scripts"

    def included(match: re.Match[str]) -> str:
        return "\n".join((folder / f"{part}.lua").read_text("utf-8") for part in match[1].split())

    source = _INCLUDE.sub(included, (folder / f"{name}.lua").read_text("utf-8"))
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


class Call(msgspec.Struct, frozen=True):
    """One script with its arguments, ready for any client, blocking or not.

    `prefix` is KEYS[1]: it routes the call to its shard, and every key the script touches starts with it.
    """

    script: Script
    prefix: str
    arguments: tuple[Argument, ...]


async def run(client: aredis.Redis, call: Call) -> Any:
    """Runs the script, loading it first where the server does not know it (any more)."""
    script = call.script
    try:
        return await client.evalsha(script.sha, 1, call.prefix, *call.arguments)
    except NoScriptError:
        return await client.eval(script.source, 1, call.prefix, *call.arguments)


async def run_all(client: aredis.Redis, calls: list[Call]) -> list[Any]:
    """Runs several calls in one round trip, in order; each is atomic by itself, not all together.

    A server that lost a script answers NOSCRIPT for some of them; all are then run again, which is for scripts
    that an order guard makes safe to repeat.
    """
    if len(calls) == 1:
        return [await run(client, calls[0])]
    try:
        return await _run_pipeline(client, calls)
    except NoScriptError:
        for script in {call.script for call in calls}:
            await client.script_load(script.source)
        return await _run_pipeline(client, calls)


async def _run_pipeline(client: aredis.Redis, calls: list[Call]) -> list[Any]:
    pipeline = client.pipeline(transaction=False)
    for call in calls:
        pipeline.execute_command("EVALSHA", call.script.sha, 1, call.prefix, *call.arguments)
    return await pipeline.execute()
