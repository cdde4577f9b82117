"""One kept-alive HTTP connection whose every request has one deadline, from the name lookup to the last byte."""

from __future__ import annotations

import contextlib
import functools
import http.client
import io
import select
import socket
import ssl
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

_LONGEST_ANSWER_BYTES: Final = 256 * 1024


class HttpAnswer(NamedTuple):
    status: int
    body: bytes
    retry_after_s: float | None


class AnswerLostError(OSError):
    """The request was handed over and no answer came: the server may have it."""


class Connection:
    """To one server. Broken or closed connections are opened anew; nothing else is retried."""

    def __init__(self, url: str, *, tls: ssl.SSLContext | None) -> None:
        parts = urlsplit(url)
        self._tls = tls if parts.scheme == "https" else None
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._prefix = parts.path.rstrip("/")
        self._http: _HttpConnection | None = None

    def post(self, path: str, body: bytes, headers: Mapping[str, str], *, timeout_s: float) -> HttpAnswer:
        """Sends one request.

        Raises:
            OSError: no connection, or it broke, or the time was over; AnswerLostError when that was after the
                request had left.
        """
        deadline_s = time.monotonic() + timeout_s
        if self._http is not None and self._http.is_stale():
            self.close()
        if self._http is None:
            self._http = _HttpConnection(self._host, self._port, self._tls)
        try:
            self._http.begin(deadline_s)
            self._http.request("POST", self._prefix + path, body, dict(headers))
            try:
                return self._read(self._http)
            except (OSError, http.client.HTTPException) as error:
                raise AnswerLostError(str(error) or type(error).__name__) from error
        except BaseException:
            # Whatever ended it, a stop request too: half a conversation is of no more use.
            self.close()
            raise

    def close(self) -> None:
        if self._http is not None:
            self._http.close()
            self._http = None

    def _read(self, connection: _HttpConnection) -> HttpAnswer:
        response = connection.getresponse()
        body = response.read(_LONGEST_ANSWER_BYTES)
        if not response.isclosed() or response.will_close:
            # Too long to be an answer of ours, or the server's wish.
            self.close()
        return HttpAnswer(response.status, body, _seconds(response.getheader("Retry-After")))


class _HttpConnection(http.client.HTTPConnection):
    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        super().__init__(host, port)
        self._tls = tls
        self._deadline_s = 0.0
        self.sock: socket.socket | None = None

    def begin(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        # http.client makes its response from this; the type it declares is the plain class.
        self.response_class = functools.partial(_Response, deadline_s=deadline_s)  # type: ignore[assignment]
        if self.sock is not None:
            self.sock.settimeout(_left_s(deadline_s))

    def connect(self) -> None:
        plain = self._open()
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain.settimeout(_left_s(self._deadline_s))
            self.sock = self._tls.wrap_socket(plain, server_hostname=self.host) if self._tls else plain
            self.sock.settimeout(_left_s(self._deadline_s))
        except BaseException:
            plain.close()
            raise

    def is_stale(self) -> bool:
        """Whether the server closed the connection since: an idle one has nothing to read but its end."""
        if self.sock is None:
            return True
        readable, _, _ = select.select([self.sock], [], [], 0)
        return bool(readable)

    def _open(self) -> socket.socket:
        """Tries all addresses of the name within one deadline (socket.create_connection counts it for each)."""
        last: OSError | None = None
        for family, kind, protocol, _, address in socket.getaddrinfo(
            self.host, self.port, type=socket.SOCK_STREAM
        ):
            candidate = socket.socket(family, kind, protocol)
            try:
                candidate.settimeout(_left_s(self._deadline_s))
                candidate.connect(address)
            except OSError as error:
                candidate.close()
                last = error
            except BaseException:
                candidate.close()
                raise
            else:
                return candidate
        raise last or OSError("the server's name has no address")


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, deadline_s: float, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        # A server that sends one byte a second would never run into a timeout for each read.
        self.fp.close()
        self.fp = io.BufferedReader(_DeadlineReader(sock, deadline_s))


class _DeadlineReader(io.RawIOBase):
    def __init__(self, sock: socket.socket, deadline_s: float) -> None:
        super().__init__()
        self._sock = sock
        # Keeps the socket open for the rest of an answer after which http.client closes the connection.
        self._raw = sock.makefile("rb", buffering=0)
        self._deadline_s = deadline_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(_left_s(self._deadline_s))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _left_s(deadline_s: float) -> float:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("timed out")
    return left_s


def _seconds(text: str | None) -> float | None:
    """Retry-After in seconds; its other form, a date, would make us trust two clocks."""
    with contextlib.suppress(ValueError):
        return float(text) if text is not None and text.strip().isdigit() else None
    return None
