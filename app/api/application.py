"""The HTTP application: routes, faults and description, without anything that it works with."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from app import __version__
from app.api.edge import Edge
from app.api.openapi import add_examples, components
from app.api.problems import add_problem_handlers
from app.api.routes import OPERATIONS, PAGES
from app.api.wiring import State

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[State]]


class _Api(FastAPI):
    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document = super().openapi()
            document.setdefault("components", {})["schemas"] = components(OPERATIONS)
            add_examples(document, OPERATIONS)
            self.openapi_schema = document
        return self.openapi_schema


class _BareRoute(APIRoute):
    """Hands the request to the handler as it is: parameters and bodies are read there, once."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return handler


def build_api(lifespan: Lifespan) -> FastAPI:
    """Args: lifespan: yields the state with the wiring, and closes what it opened."""
    app = _Api(
        title="Headroom",
        summary="Which machines have this much GPU memory and this many CPU cores free, right now?",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.router.route_class = _BareRoute
    # Added to the app itself, not by way of routers, which would cost a second matching per request.
    for operation in OPERATIONS:
        app.add_api_route(
            operation.path,
            operation.handler,
            methods=[operation.method],
            operation_id=operation.operation_id,
            tags=[operation.tag],
            summary=operation.summary,
            status_code=next(iter(operation.answers)),
            response_class=Response,
            response_model=None,
            responses=operation.responses(),
            openapi_extra=operation.described(),
        )
    for path, handler in PAGES:
        app.add_api_route(path, handler, methods=["GET"], include_in_schema=False, response_class=Response)
    allowed = {path: [o.method for o in OPERATIONS if o.path == path] for path in {o.path for o in OPERATIONS}}
    add_problem_handlers(
        app,
        failed={operation.operation_id: operation.failed for operation in OPERATIONS},
        allowed={**{path: ["GET"] for path, _ in PAGES}, **allowed},
    )
    app.add_middleware(Edge)
    return app
