"""The HTTP server: the one place where uvicorn is configured."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from typing import TYPE_CHECKING, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.listener import BACKLOG, LISTEN_FD_VARIABLE, address_of, listen
from app.telemetry import logger

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from app.settings import Settings

_log = logger(__name__)

_KEEP_ALIVE_S: Final = 75
"""Longer than the agents' interval of 30 s, so that they need no new connection for each heartbeat."""

_CROWDED_KEEP_ALIVE_S: Final = 10
_HEADER_BYTES: Final = 32 * 1024
_MOST_CONNECTIONS: Final = 10_000
_OTHER_FILES: Final = 200


def serve(app: Starlette, settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then lets the requests under way finish.

    Raises:
        StartupRefusedError: a store that was away at the start came, and is none to work with.
    """
    inherited = os.environ.pop(LISTEN_FD_VARIABLE, None)
    listener = listen(settings) if inherited is None else socket.socket(fileno=int(inherited))
    server = server_of(app, settings)
    _log.info("The API listens", url=address_of(listener))
    server.run(sockets=[listener])
    loops = server.loops
    if loops is not None and loops.done():
        loops.result()


def server_of(app: Starlette, settings: Settings) -> Server:
    config = uvicorn.Config(
        app,
        lifespan="on",
        log_config=None,  # app.telemetry has set it up
        log_level="warning",
        access_log=False,  # a line per lookup would cost more than the lookup; /metrics counts them
        server_header=False,
        proxy_headers=False,
        http=KeptAlive,
        ws="none",
        backlog=BACKLOG,
        limit_concurrency=_connections(),
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, int(settings.requests_end_after_s)),
        h11_max_incomplete_event_size=_HEADER_BYTES,
    )
    return Server(config, app)


class KeptAlive(HttpToolsProtocol):
    """Keeps connections that nobody uses, for less time once half of those there may be are open.

    Past that number callers get 503: a large fleet must not fill it by waiting for its next heartbeats.
    """

    def on_response_complete(self) -> None:
        crowded = self.limit_concurrency is not None and 2 * len(self.connections) > self.limit_concurrency
        self.timeout_keep_alive = _CROWDED_KEEP_ALIVE_S if crowded else _KEEP_ALIVE_S
        super().on_response_complete()


class Server(uvicorn.Server):
    """Ends searches that wait and streams of events when it is told to end, instead of waiting for them; ends by
    itself when the application's loops do.
    """

    def __init__(self, config: uvicorn.Config, app: Starlette) -> None:
        super().__init__(config)
        self._app = app

    @property
    def loops(self) -> asyncio.Task[None] | None:
        """None where the application has none."""
        loops: asyncio.Task[None] | None = getattr(self._app.state, "loops", None)
        return loops

    async def on_tick(self, counter: int) -> bool:
        ended = self.loops is not None and self.loops.done()
        return await super().on_tick(counter) or ended

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        drain = getattr(self._app.state, "drain", None)
        if drain is not None:
            drain()
        await super().shutdown(sockets)


def _connections() -> int:
    """As many as there are descriptors for: past that accept() fails and the loop spins."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_CONNECTIONS + _OTHER_FILES
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    return max(64, min(_MOST_CONNECTIONS, (allowed if soft == resource.RLIM_INFINITY else soft) - _OTHER_FILES))
