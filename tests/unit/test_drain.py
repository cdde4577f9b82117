"""What is still under way when the API ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import msgspec
import pytest
import uvicorn
from starlette.types import Message, Receive, Scope, Send

from app.api.edge import Edge
from app.listener import listen
from app.main import create_app
from app.models.heartbeat import Heartbeat
from app.models.identity import StreamId
from app.serve import server_of
from tests.mock_ports import Ports
from tests.waiting import wait_until_async

HALF = (
    b"POST /api/v1/heartbeats HTTP/1.1\r\nHost: headroom\r\nContent-Type: application/json\r\n"
    b'Content-Length: 1000\r\n\r\n{"heartbeats": ['
)
WHOLE = (
    b"POST /api/v1/agents/00000000-0000-4000-8000-000000000001/heartbeat HTTP/1.1\r\nHost: headroom\r\n"
    b'Content-Type: application/json\r\nContent-Length: 24\r\n\r\n{"resource_metrics": {}}'
)


class Asked(NamedTuple):
    """An API that has begun with a request, and where the answer comes."""

    server: uvicorn.Server
    answer: asyncio.StreamReader


@asynccontextmanager
async def asked(ports: Ports, request: bytes) -> AsyncIterator[Asked]:
    """The API is told to end in here, and has ended afterwards."""
    with listen(ports.settings) as listener:
        server = server_of(create_app(ports.settings, wiring=ports.wiring), ports.settings)
        serving = asyncio.create_task(server._serve([listener]))
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(request)
        await wait_until_async(lambda: bool(server.server_state.tasks), what="the request")
        yield Asked(server, reader)
        await serving
        writer.close()
        with contextlib.suppress(ConnectionError):
            # Reset where the server had not read all that was sent.
            await writer.wait_closed()


def problem_in(answer: bytes) -> dict[str, object]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head, answer
    assert b"connection: close" in head.lower()
    assert b"retry-after: " in head.lower()
    document: dict[str, object] = msgspec.json.decode(body)
    return document


@pytest.fixture
def ports() -> Ports:
    return Ports(port=0, shutdown_after_s=1.0)


@pytest.fixture
def no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO):
        yield
    assert not [line for line in caplog.get_records("call") if line.exc_info]


@pytest.mark.usefixtures("no_traceback")
async def test_who_never_finishes_sending_is_told_so(ports: Ports) -> None:
    """Waiting for the rest would take for ever; that the process ends is no fault of the request."""
    async with asked(ports, HALF) as api:
        api.server.should_exit = True
        answer = await api.answer.read()
    assert problem_in(answer)["status"] == 503


@pytest.mark.usefixtures("no_traceback")
async def test_who_waits_for_a_store_that_hangs_is_told_so(ports: Ports) -> None:
    async def never(_heartbeats: list[Heartbeat]) -> list[StreamId]:
        await asyncio.Event().wait()
        return []

    ports.log.append.side_effect = never
    async with asked(ports, WHOLE) as api:
        api.server.should_exit = True
        answer = await api.answer.read()
    assert problem_in(answer)["status"] == 503


async def test_what_the_store_takes_meanwhile_is_acknowledged(ports: Ports) -> None:
    released = asyncio.Event()

    async def slowly(heartbeats: list[Heartbeat]) -> list[StreamId]:
        await released.wait()
        return [StreamId(1, n) for n in range(len(heartbeats))]

    ports.log.append.side_effect = slowly
    async with asked(ports, WHOLE) as api:
        api.server.should_exit = True
        await wait_until_async(lambda: not api.server.servers[0].is_serving(), what="the end of listening")
        released.set()
        answer = await api.answer.read()
    assert answer.startswith(b"HTTP/1.1 202 ")


@pytest.mark.parametrize("state", [{"state": {}}, {}])
async def test_a_gateway_cuts_off_without_a_word(state: dict[str, dict[str, object]]) -> None:
    """It has no lifespan, and so no time to drain that could be over."""

    async def never(_scope: Scope, _receive: Receive, _send: Send) -> None:
        await asyncio.Event().wait()

    async def receive() -> Message:
        raise AssertionError("nothing is read")

    async def send(_message: Message) -> None:
        raise AssertionError("nothing is answered")

    serving = asyncio.create_task(Edge(never)({"type": "http", "path": "/", **state}, receive, send))
    await asyncio.sleep(0)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
