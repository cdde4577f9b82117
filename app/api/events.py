"""`GET /api/v1/events`: changes as server-sent events, resumable by their versions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.capacity import until_gone
from app.api.fields import MAX_POOL_NAME, FieldFaultError
from app.api.problems import FieldError, InvalidParametersError
from app.api.query import Parameter, read_query, text
from app.api.sse import encode_change
from app.api.wiring import Wiring, wiring_of
from app.errors import UnavailableError
from app.models.change import Change, ChangeKind, EventFilter
from app.models.identity import AGENT_TYPE_PATTERN, StreamId
from app.service.audience import Audience, Listener
from app.service.feed import FeedHub

KEEP_ALIVE_S: Final = 15.0
RETRY_MS: Final = 2_000


def _version(text: str) -> StreamId:
    try:
        return StreamId.parse(text)
    except ValueError:
        raise FieldFaultError("pattern", "Must be a version, such as 1763866800123-0") from None


def _kinds(text: str) -> frozenset[ChangeKind]:
    try:
        return frozenset(ChangeKind(kind) for kind in text.split(","))
    except ValueError:
        raise FieldFaultError("choice", f"Must be some of {', '.join(ChangeKind)}, with commas") from None


_ANY_KIND: Final = f"({'|'.join(ChangeKind)})"

EVENT_PARAMETERS: Final = (
    text("agent_type", "Only changes of this kind of agent.", longest=32, pattern=AGENT_TYPE_PATTERN),
    text("pool_name", "Only changes of agents of this pool.", longest=MAX_POOL_NAME),
    Parameter(
        name="kinds",
        description="Only these kinds of change, with commas; `reset` comes in any case.",
        read=_kinds,
        schema={"type": "string", "pattern": f"^{_ANY_KIND}(,{_ANY_KIND})*$"},
    ),
    Parameter(
        name="after",
        description="Only what came after this version; `0-0`: all there is. The header Last-Event-ID goes first.",
        read=_version,
        schema={"type": "string", "pattern": "^[0-9]{1,20}-[0-9]{1,20}$"},
    ),
)


async def listen(request: Request) -> Response:
    sent: dict[str, Any] = read_query(request, EVENT_PARAMETERS)
    after = sent.pop("after", None)
    if (resumed := request.headers.get("last-event-id")) is not None:
        try:
            after = _version(resumed)
        except FieldFaultError as fault:
            raise InvalidParametersError([FieldError("Last-Event-ID", fault.code, fault.message)]) from None
    wiring = wiring_of(request)
    wanted = EventFilter(**sent)
    listener, position = await wiring.audience.join(wanted, after=after)
    return EventStream(wiring, wanted, listener, after=position if after is None else after, until=position)


class EventStream(Response):
    """Sends what the listener gets until either side ends it; a client that does not read is cut off."""

    def __init__(
        self, wiring: Wiring, wanted: EventFilter, listener: Listener, *, after: StreamId, until: StreamId
    ) -> None:
        super().__init__(status_code=200)
        self._audience: Audience = wiring.audience
        self._hub: FeedHub = wiring.hub
        self._draining = wiring.draining
        self._wanted = wanted
        self._listener = listener
        self._after = after
        self._until = until

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        sending = asyncio.create_task(self._send(send))
        gone = asyncio.create_task(until_gone(receive))
        lost = asyncio.create_task(self._listener.lost.wait())
        draining = asyncio.create_task(self._draining.wait())
        tasks = {sending, gone, lost, draining}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if lost.done():
                _cut_off(receive)
                await asyncio.wait({gone}, timeout=1.0)
            elif draining.done() and not gone.done():
                sending.cancel()
                await asyncio.wait({sending})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._audience.leave(self._wanted, self._listener)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if sending.done() and not sending.cancelled() and (fault := sending.exception()) is not None:
            raise fault

    async def _send(self, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            async for chunk in self._chunks():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except UnavailableError:
            # While catching up. The client comes back with the last id that it has.
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _chunks(self) -> AsyncIterator[bytes]:
        # A browser keeps this id and comes back with it, even if nothing happens before it has to.
        yield b"retry: %d\nid: %s\n\n" % (RETRY_MS, str(self._after).encode())
        start = self._after
        if start > self._until:
            # A version of a feed that is lost: whoever has it must begin anew.
            start = StreamId(0)
            if self._until == start:
                yield encode_change(Change(version=start, kind=ChangeKind.RESET))
        async for changes in self._hub.replay(start, self._until):
            if chunk := b"".join(encode_change(change) for change in changes if self._wanted.wants(change)):
                yield chunk
        while True:
            try:
                async with asyncio.timeout(KEEP_ALIVE_S):
                    chunk = await self._listener.next()
            except TimeoutError:
                chunk = self._keep_alive()
            yield chunk

    def _keep_alive(self) -> bytes:
        # With the version up to which it has everything: one that wants little must not come back with an id
        # from so long ago that the feed has lost it.
        if self._listener.unread:
            return b": keep-alive\n\n"
        return b": keep-alive\nid: %s\n\n" % str(self._hub.position or self._until).encode()


def _cut_off(receive: Receive) -> None:
    """Closes the connection at once: an orderly end would wait for the client to read what it does not read.

    ASGI has no word for it, so this asks uvicorn's own request for its transport; on another server the
    connection ends with the answer.
    """
    transport = getattr(getattr(receive, "__self__", None), "transport", None)
    if transport is not None:
        transport.abort()
