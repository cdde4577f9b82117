"""Runs script calls on an asyncio client."""

from __future__ import annotations

from typing import Any

import redis.asyncio as aredis
from redis.exceptions import NoScriptError

from app.index.connect import send
from app.index.scripts import Call


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
    return await send(pipeline)
