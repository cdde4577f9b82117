"""A server for agents that does as a test says: answers, refuses, drips, or never says a word."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import msgspec

from tests.waiting import PATIENCE_S


class Received(NamedTuple):
    """One request as it came in; `at_s` by time.monotonic(), `connection` tells connections apart."""

    at_s: float
    path: str
    headers: dict[str, str]
    heartbeat: Any
    connection: int


class Reply(NamedTuple):
    status: int = 202
    body: object = {"stream_id": "1-0", "next_heartbeat_s": 30.0}
    headers: dict[str, str] = {}  # noqa: RUF012  # a NamedTuple's default; nobody writes into it


class HeartbeatServer:
    """`closed` counts the connections that have ended.

    `reply` may be replaced at any time; it may sleep, or raise ConnectionError to cut the connection.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.received: list[Received] = []
        self.closed = 0
        self.reply: Callable[[Received], Reply] = lambda _: Reply()

    @property
    def heartbeats(self) -> list[Any]:
        return [received.heartbeat for received in self.received]


@contextmanager
def heartbeat_server(*, tls: ssl.SSLContext | None = None, idle_s: float = 60.0) -> Iterator[HeartbeatServer]:
    """Serves on a loopback port. `idle_s`: how long a silent connection is kept."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = idle_s

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received = Received(
                time.monotonic(),
                self.path,
                {name.lower(): value for name, value in self.headers.items()},
                msgspec.msgpack.decode(body),
                self.client_address[1],
            )
            server.received.append(received)
            try:
                reply = server.reply(received)
            except ConnectionError:
                self.close_connection = True
                return
            content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(content)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Tests read `received` instead."""

    class Http(ThreadingHTTPServer):
        def shutdown_request(self, request: Any) -> None:
            super().shutdown_request(request)
            server.closed += 1

    with Http(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        # An agent may hang up while its answer is being written; that is no fault of the test.
        http.handle_error = lambda *_: None  # type: ignore[method-assign]  # the documented way is a subclass
        if tls is not None:
            http.socket = tls.wrap_socket(http.socket, server_side=True)
        server = HeartbeatServer(http.server_port)
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join(PATIENCE_S)
