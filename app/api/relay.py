"""The edge of a site's gateway: it takes heartbeats as the API does, and hands them to what sends them on."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.agents import path_agent_id
from app.api.answers import NO_STORE, answer
from app.api.body import read_document
from app.api.documents import RejectedItemDocument
from app.api.edge import Edge
from app.api.health import livez
from app.api.heartbeats import read_batch, read_heartbeat
from app.api.problems import UnauthorizedError, add_problem_handlers, problem
from app.api.query import read_query
from app.models.heartbeat import Heartbeat
from app.models.identity import AgentId

MAX_BODY_BYTES: Final = 4 * 1024 * 1024
_OPEN_PATHS: Final = frozenset({"/livez", "/readyz"})


class RelayStatus(msgspec.Struct, frozen=True):
    """`held`: agents whose newest heartbeat has not reached a server yet."""

    status: str
    held: int


class Relay(Protocol):
    """What a gateway does with a heartbeat."""

    def take(self, heartbeats: Sequence[Heartbeat]) -> None:
        """Holds them until they are sent on.

        Raises:
            UnavailableError: no server has been reached for a while; what was given is held all the same.
        """

    def next_heartbeat_s(self) -> float:
        """When an agent should report again."""

    def is_cloned(self, agent_id: AgentId) -> bool:
        """Whether the server lately saw two machines under this id."""

    def status(self) -> RelayStatus: ...


class RelayedDocument(msgspec.Struct, frozen=True):
    """`stream_id` is null: the log has the heartbeat a moment later."""

    next_heartbeat_s: float
    stream_id: None = None
    cloned: bool = False


class RelayedItemDocument(msgspec.Struct, frozen=True):
    index: int
    stream_id: None = None


class RelayedBatchDocument(msgspec.Struct, frozen=True):
    accepted: list[RelayedItemDocument]
    rejected: list[RejectedItemDocument]
    next_heartbeat_s: float


def build_relay(relay: Relay, *, token: str) -> FastAPI:
    """Args: token: what agents must send as `Authorization: Bearer`; empty asks for none."""

    async def post_heartbeat(request: Request) -> Response:
        agent_id = path_agent_id(request)
        read_query(request, ())
        document = await read_document(request, max_bytes=MAX_BODY_BYTES)
        relay.take([read_heartbeat(document, agent_id)])
        relayed = RelayedDocument(relay.next_heartbeat_s(), cloned=relay.is_cloned(agent_id))
        return answer(relayed, status=202)

    async def post_heartbeats(request: Request) -> Response:
        read_query(request, ())
        batch = read_batch(await read_document(request, max_bytes=MAX_BODY_BYTES))
        relay.take([heartbeat for _, heartbeat in batch.valid])
        accepted = [RelayedItemDocument(index) for index, _ in batch.valid]
        return answer(
            RelayedBatchDocument(accepted, batch.rejected, relay.next_heartbeat_s()),
            status=202,
        )

    async def readyz(_request: Request) -> Response:
        status = relay.status()
        if status.status == "ready":
            return answer(status)
        return answer(status, status=503, headers={**NO_STORE, "Retry-After": "2"})

    app = FastAPI(title="Headroom gateway", openapi_url=None, redirect_slashes=False)
    routes = (
        ("POST", "/api/v1/agents/{agent_id}/heartbeat", post_heartbeat),
        ("POST", "/api/v1/heartbeats", post_heartbeats),
        ("GET", "/livez", livez),
        ("GET", "/readyz", readyz),
    )
    for method, path, handler in routes:
        app.add_api_route(path, handler, methods=[method], response_class=Response, response_model=None)
    add_problem_handlers(app, failed={}, allowed={path: [method] for method, path, _ in routes})
    app.add_middleware(Edge)
    if token:
        app.add_middleware(_Guard, token=token)
    return app


class _Guard:
    """ASGI middleware: asks for the token, before a byte of the body is read."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _OPEN_PATHS:
            sent = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
            if not hmac.compare_digest(sent, self._expected):
                refusal = problem(
                    UnauthorizedError(), headers={"WWW-Authenticate": "Bearer", "Connection": "close"}
                )
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)
