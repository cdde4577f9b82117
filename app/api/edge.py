"""What is refused before any route is looked at. The place for further limits on the way in."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.problems import InvalidPathError, problem


class Edge:
    """ASGI middleware: a path may not end in a line feed (`%0a`).

    Route patterns end with `$`, which would let it pass as if it were not there. Other control characters match
    no fixed path, and no id.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].endswith("\n"):
            await problem(InvalidPathError())(scope, receive, send)
            return
        await self._app(scope, receive, send)
