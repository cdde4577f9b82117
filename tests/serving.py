"""Serves the API to tests: in the test's own event loop, or by a real server on a loopback port."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.client import HTTPResponse
from typing import NamedTuple

import httpx
import msgspec
import uvicorn
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from tests.waiting import PATIENCE_S, wait_until


@asynccontextmanager
async def http_client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application in this event loop, lifespan included; a 500 is an answer, not an exception."""
    async with app.router.lifespan_context(app) as state:

        async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "state": dict(state or {})}, receive, send)

        transport = httpx.ASGITransport(with_state, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://headroom") as client:
            yield client


@contextmanager
def served(app: FastAPI) -> Iterator[int]:
    """Runs a real server in a thread and yields its port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        # A client that still listens is cut off.
        server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1)
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            wait_until(lambda: server.started, what="the server's start")
            yield int(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The problem's code; fails if the answer is no well-formed problem."""
        assert self.headers["content-type"] == "application/problem+json", self
        problem = msgspec.json.decode(self.body)
        assert problem["status"] == self.status
        assert problem["title"]
        assert problem["detail"]
        return str(problem["code"])


def exchange(port: int, request: bytes, *, timeout_s: float = PATIENCE_S) -> Answer:
    """Sends bytes as they are over a connection of their own and reads one answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        connection.sendall(request)
        response = HTTPResponse(connection)
        response.begin()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, response.read())


def http_request(method: str, target: str, body: bytes | None = None, **headers: str) -> bytes:
    """A request as bytes; header names are given with underscores, None for a body sends no Content-Length."""
    lines = [f"{method} {target} HTTP/1.1", "Host: headroom"]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def check(answer: Answer, expected: set[int]) -> None:
    assert answer.status in expected, answer
    assert answer.status < 500
    if answer.status >= 400:
        assert answer.code
