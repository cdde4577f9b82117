"""Delivery of heartbeats to the API: one batch, one answer."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Self

import httpx
import msgspec

from app.models.heartbeat import Heartbeat

PATH: Final = "/api/v1/heartbeats"
MAX_BATCH: Final = 1_000
CONNECTIONS: Final = 4
TIMEOUT_S: Final = 10.0
_TRY_AGAIN_LATER: Final = frozenset({429, 503})


class Taken(msgspec.Struct, frozen=True):
    """The server answered for good: these were acknowledged, those refused."""

    accepted: int
    rejected: int
    next_heartbeat_s: float | None = None


class Deferred(msgspec.Struct, frozen=True):
    """Nothing was taken; the same or newer heartbeats may be sent later."""

    reason: str
    retry_after_s: float | None = None


class _Answer(msgspec.Struct, frozen=True):
    next_heartbeat_s: float
    accepted: list[msgspec.Raw] = []
    rejected: list[msgspec.Raw] = []


class _Problem(msgspec.Struct, frozen=True):
    code: str = "unknown"


_encoder = msgspec.msgpack.Encoder()
_answers = msgspec.json.Decoder(_Answer)
_problems = msgspec.json.Decoder(_Problem)


class Delivery:
    """Posts batches over a few kept-alive connections and counts what became of them.

    Attributes:
        refusals: answers other than 202, 429 and 503, by status and code.
        latencies_s: of the last thousand answered batches.
    """

    def __init__(self, url: str) -> None:
        self._client = httpx.AsyncClient(
            base_url=url,
            timeout=TIMEOUT_S,
            limits=httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS),
            headers={"content-type": "application/msgpack"},
            # A proxy from the environment has no business with a loopback server.
            trust_env=False,
        )
        self.accepted = self.rejected = self.deferred = 0
        self.refusals: Counter[str] = Counter()
        self.latencies_s: deque[float] = deque(maxlen=1_000)

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self._client.__aexit__(exc_type, exc, traceback)

    async def post(self, heartbeats: Sequence[Heartbeat]) -> Taken | Deferred:
        """Sends one batch once. Never raises for what a server or a network may do."""
        body = _body(heartbeats, datetime.now(UTC))
        begun = time.perf_counter()
        try:
            response = await self._client.post(PATH, content=body)
        except httpx.TransportError as error:
            self.deferred += len(heartbeats)
            return Deferred(type(error).__name__)
        self.latencies_s.append(time.perf_counter() - begun)
        if response.status_code in _TRY_AGAIN_LATER:
            self.deferred += len(heartbeats)
            return Deferred(_code(response), _retry_after_s(response))
        taken = _taken(response, len(heartbeats))
        self.accepted += taken.accepted
        self.rejected += taken.rejected
        if taken.accepted == 0:
            self.refusals[_code(response)] += 1
        return taken


def _body(heartbeats: Sequence[Heartbeat], now: datetime) -> bytes:
    sent_at = now.isoformat(timespec="milliseconds")
    # Through builtins, since msgspec would write datetimes as msgpack's extension type.
    items = [{**msgspec.to_builtins(heartbeat), "sent_at": sent_at} for heartbeat in heartbeats]
    return _encoder.encode({"heartbeats": items})


def _taken(response: httpx.Response, sent: int) -> Taken:
    if response.status_code != httpx.codes.ACCEPTED:
        return Taken(0, sent)
    try:
        answer = _answers.decode(response.content)
    except msgspec.DecodeError:
        return Taken(0, sent)
    return Taken(len(answer.accepted), len(answer.rejected), answer.next_heartbeat_s)


def _code(response: httpx.Response) -> str:
    try:
        return f"{response.status_code} {_problems.decode(response.content).code}"
    except msgspec.DecodeError:
        return f"{response.status_code} {response.reason_phrase}"


def _retry_after_s(response: httpx.Response) -> float | None:
    """Seconds only; a date is not worth the clocks it would compare."""
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else None
