"""What is refused before any route is looked at, or cut off. The place for further limits on the way in."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from app.api.problems import InvalidPathError, problem
from app.errors import UnavailableError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)


class Edge:
    """ASGI middleware.

    A path may not end in a line feed (`%0a`): route patterns end with `$`, which would let it pass as if it were
    not there. Other control characters match no fixed path, and no id.

    Who is not answered when the time to drain is over is answered 503, also in the middle of sending.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"].endswith("\n"):
            await problem(InvalidPathError())(scope, receive, send)
            return
        answered = False

        async def answer(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self._app(scope, receive, answer)
        except asyncio.CancelledError:
            # The server logs a cancelled request as a fault of ours; nothing runs in this task after it. A gateway
            # drains nothing.
            wiring = scope.get("state", {}).get("wiring")
            if wiring is None or not wiring.draining.is_set():
                raise
            log.warning("Cut off a request: the time to drain is over")
            if not answered:
                await problem(UnavailableError("This process ends; ask again"))(scope, receive, send)
