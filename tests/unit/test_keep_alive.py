"""How long the API keeps connections that nobody uses."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack

import uvicorn
from starlette.types import Receive, Scope, Send

from app.serve import KeptAlive

MOST = 8
REQUEST = b"GET / HTTP/1.1\r\nHost: headroom\r\n\r\n"


async def empty(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


async def test_longer_than_an_interval_while_there_is_room() -> None:
    """An agent that reports every 30 s needs no new connection; a crowd gets 10 s, which leave room for others."""
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        config = uvicorn.Config(empty, http=KeptAlive, limit_concurrency=MOST, lifespan="off", log_config=None)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server._serve([listener]))
        writers = []
        for _ in range(MOST - 1):
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            writers.append(writer)
            writer.write(REQUEST)
            assert b" 204 " in await reader.readuntil(b"\r\n\r\n")
        kept = [connection.timeout_keep_alive for connection in server.server_state.connections]  # type: ignore[union-attr]  # one of ours
        assert sorted(kept) == [10] * 3 + [75] * 4
        server.should_exit = True
        await serving
        assert not server.server_state.connections, "idle connections do not hold the end up"
        for writer in writers:
            writer.close()
