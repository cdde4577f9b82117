"""The API process of the benchmark: the real API, and beside it, on the same server, a bare FastAPI route."""

from __future__ import annotations

import sys

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.main import create_app
from app.serve import serve
from app.settings import Settings
from app.telemetry import configure_logging
from tests.bench.web import FLOOR_PATH


class BesideEachOther(Starlette):
    """Hands the one path to the bare application and everything else, the lifespan too, to the API."""

    def __init__(self, api: Starlette, bare: Starlette) -> None:
        super().__init__()
        self._api = api
        self._bare = bare
        # The server looks here for what it has to end before it ends.
        self.state = api.state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        chosen = self._bare if scope.get("path") == FLOOR_PATH else self._api
        await chosen(scope, receive, send)


def bare_application() -> FastAPI:
    bare = FastAPI(openapi_url=None)

    @bare.get(FLOOR_PATH)
    async def floor() -> Response:
        return Response(b"[]", media_type="application/json")

    return bare


def main() -> int:
    settings = Settings()
    configure_logging("WARNING", "console")
    serve(BesideEachOther(create_app(settings), bare_application()), settings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
