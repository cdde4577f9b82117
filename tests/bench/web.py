"""The sides that ask over HTTP: the API and a bare FastAPI route, in one server process, over one connection."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from typing import Any, Final

from tests.bench.insights import http_path, told_by_http
from tests.bench.questions import INSIGHT_KINDS, Answer, Promise, Question
from tests.bench.sides import SOCKET_TIMEOUT_S, Timed, parse_json, row_of_json, timed

FLOOR_PATH: Final = "/bench-floor"

_FRESH_S: Final = 3.0


class HttpConnection:
    """A kept-alive connection that does the least a client can do, so that the server is what is measured."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket = self._connected()
        self._used_at = time.monotonic()

    def freshen(self) -> None:
        """Connects anew where the server may be about to end a connection that lay idle. Not to be timed."""
        if time.monotonic() - self._used_at > _FRESH_S:
            self._socket.close()
            self._socket = self._connected()
            self.exchange(get(FLOOR_PATH))
        self._used_at = time.monotonic()

    def exchange(self, request: bytes) -> tuple[bytes, bytes]:
        """Returns head and body of the answer. Raises ConnectionError unless its status is 200 or 202."""
        self._socket.sendall(request)
        return self.receive()

    def send(self, request: bytes) -> None:
        self._socket.sendall(request)

    def receive(self) -> tuple[bytes, bytes]:
        """The answer to the request sent last; see `exchange`."""
        received = self._receive()
        while (end := received.find(b"\r\n\r\n")) < 0:
            received += self._receive()
        head, body = received[:end], received[end + 4 :]
        if not head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 202")):
            raise ConnectionError(f"the API answered {received[:400]!r}")
        lower = head.lower()
        start = lower.index(b"content-length:") + 15
        length = int(lower[start:].split(b"\r\n", 1)[0])
        while len(body) < length:
            body += self._receive()
        return head, body

    def close(self) -> None:
        self._socket.close()

    def _connected(self) -> socket.socket:
        connected = socket.create_connection(("127.0.0.1", self._port), timeout=SOCKET_TIMEOUT_S)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connected

    def _receive(self) -> bytes:
        received = self._socket.recv(262_144)
        if not received:
            raise ConnectionError("the API closed the connection")
        return received


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()


def post(path: str, body: bytes, *, media_type: str = "application/json") -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class HttpFloor:
    """What a route costs that does nothing, on the same server."""

    name = "bare FastAPI route"
    promise: Promise = "exact"

    def __init__(self, port: int) -> None:
        self._connection = HttpConnection(port)

    def ask(self, question: Question, turns: Sequence[int]) -> list[Timed]:
        del question
        self._connection.freshen()
        request = get(FLOOR_PATH)
        return timed(lambda _: parse_json(self._connection.exchange(request)[1]), turns)

    def read(self, question: Question, raw: Any) -> None:
        del question, raw

    def close(self) -> None:
        self._connection.close()


class HttpSide:
    """This index, asked through the API."""

    name = "index through HTTP"
    promise: Promise = "exact"

    def __init__(self, port: int, asked_ids: Sequence[str]) -> None:
        self._connection = HttpConnection(port)
        self._asked_ids = asked_ids

    def ask(self, question: Question, turns: Sequence[int]) -> list[Timed]:
        self._connection.freshen()
        if question.kind == "one":
            requests = [get(f"/api/v1/agents/{agent_id}/capacity") for agent_id in self._asked_ids]
            return timed(lambda turn: self._exchange(requests[turn % len(requests)]), turns)
        if question.kind in INSIGHT_KINDS:
            request = get(http_path(question))
            return timed(lambda _: self._exchange(request), turns)
        request = get(
            f"/api/v1/agents/available-capacity?min_gpu_vram_gb={question.min_vram_gb}"
            f"&min_cpu_cores={question.min_cores}&limit={1 if question.kind == 'count' else question.limit}"
        )
        return timed(lambda _: self._exchange(request), turns)

    def read(self, question: Question, raw: Any) -> Answer:
        head, document = raw
        lower = head.lower()
        if b"x-capacity-source" in lower:
            raise ConnectionError("the API answered from the record")
        if question.kind in INSIGHT_KINDS:
            return told_by_http(question, document)
        if question.kind == "count":
            return int(lower.partition(b"x-total-count:")[2].split(b"\r\n", 1)[0])
        rows = [document] if question.kind == "one" else document
        return tuple(row_of_json(row) for row in rows)

    def close(self) -> None:
        self._connection.close()

    def _exchange(self, request: bytes) -> tuple[bytes, Any]:
        head, body = self._connection.exchange(request)
        return head, parse_json(body)
