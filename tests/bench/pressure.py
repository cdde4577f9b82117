"""Heartbeats that pour in while lookups are measured: into the stream, or as batched updates into Postgres.

Each source is a process of its own that prepares its messages before it is let go, so that while others are
measured it only sends.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
import time
from bisect import bisect_right
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

import asyncpg
import hiredis
import msgspec

from app.index.keys import Keys
from app.models.heartbeat import encode
from tests.bench.fleets import Fleet
from tests.bench.tables import JSON, PeerTable, metrics_document, plain_url
from tests.bench.web import HttpConnection, post

INTERVAL_S: Final = 30.0
"""How often an agent reports."""

MOST_PER_S: Final = 3_334.0
"""More than this one machine with two cores cannot both send and apply."""

_END_S: Final = 20.0
_spawning: Final = multiprocessing.get_context("spawn")


class Sent(msgspec.Struct, frozen=True):
    """When (`perf_counter`, the same in all processes) how many heartbeats had been sent or were being sent.

    The first moment is that of the start, the last one that of the last answer or of the stop.
    """

    at: list[float]
    count: list[int]

    def until(self, moment: float) -> int:
        """No store can have shown more heartbeats than this at that moment."""
        place = bisect_right(self.at, moment)
        return self.count[place - 1] if place else self.before

    @property
    def before(self) -> int:
        return self.count[0]

    @property
    def per_s(self) -> float:
        return (self.count[-1] - self.count[0]) / (self.at[-1] - self.at[0])


class Preparation(msgspec.Struct, frozen=True):
    """The next heartbeats to make ready: `count` of them from `first` on, in slices, one a tick."""

    fleet: Fleet
    first: int
    count: int
    slice_size: int
    tick_s: float
    changing: bool = True
    """Whether each heartbeat has new figures; else every agent repeats those it started with."""


class Source:
    """A process that sends the fleet's heartbeats in order, agent by agent, at a steady rate."""

    tick_s: float = 0.02
    slice_size: int = 0
    """How many heartbeats at once; 0: as many as make a tick."""

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        self._pipe, theirs = _spawning.Pipe()
        self._process = _spawning.Process(target=target, args=(theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()
        self.sent = 0

    def prepare(self, fleet: Fleet, count: int, *, per_s: float, changing: bool = True) -> None:
        """Makes the next heartbeats ready; they go on where the last ones sent ended."""
        slice_size = self.slice_size or max(1, round(per_s * self.tick_s))
        # Small fleets report less often than once a tick.
        tick_s = slice_size / per_s
        self._pipe.send(Preparation(fleet, self.sent, count, slice_size, tick_s, changing))
        self._answer()

    def go(self) -> None:
        self._pipe.send("go")

    def stop(self) -> Sent:
        """Ends the sending where it is, or at the end of what was prepared."""
        self._pipe.send("stop")
        return self._take()

    def finish(self) -> Sent:
        """Returns once everything that was prepared has been sent."""
        return self._take()

    def close(self) -> None:
        # The process ends when its pipe does.
        self._pipe.close()
        self._process.join(_END_S)
        if self._process.is_alive():
            self._process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start_over(self) -> None:
        """To be called when the fleet was loaded anew."""
        self.sent = 0

    def _take(self) -> Sent:
        sent: Sent = self._answer()
        self.sent = sent.count[-1]
        return sent

    def _answer(self) -> Any:
        answer = self._pipe.recv()
        if isinstance(answer, BaseException):
            raise answer
        return answer


class StreamSource(Source):
    """Adds heartbeats to the stream."""

    def __init__(self, redis_url: str) -> None:
        super().__init__(send_to_stream, redis_url)


class UpdateSource(Source):
    """Updates a peer's table, a batch per tick."""

    tick_s = 0.1

    def __init__(self, database_url: str, table: PeerTable) -> None:
        super().__init__(send_updates, database_url, table)


class PostSource(Source):
    """Posts heartbeats to the API, some requests at once, each with `per_request` heartbeats."""

    def __init__(self, port: int, *, per_request: int, at_once: int) -> None:
        self.slice_size = per_request * at_once
        super().__init__(post_to_api, port, per_request, at_once)


def send_to_stream(pipe: Connection, redis_url: str) -> None:
    address = urlsplit(redis_url)
    with socket.create_connection((address.hostname, address.port or 6379), timeout=_END_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader = hiredis.Reader()

        def send(heartbeats: int, commands: bytes) -> None:
            connection.sendall(commands)
            answered = 0
            while answered < heartbeats:
                reply = reader.gets()
                if reply is False:
                    reader.feed(connection.recv(262_144))
                elif isinstance(reply, Exception):
                    raise reply
                else:
                    answered += 1

        _serve(pipe, _stream_slice, send)


def _stream_slice(prepared: Preparation, beats: range) -> bytes:
    stream = Keys().heartbeats
    commands = []
    for n in beats:
        number, beat = n % prepared.fleet.size, n // prepared.fleet.size + 1
        heartbeat = prepared.fleet.heartbeat(number, beat if prepared.changing else 0, seq=beat)
        command: tuple[str | bytes, ...] = ("XADD", stream, "*", "heartbeat", encode(heartbeat))
        commands.append(hiredis.pack_command(command))  # type: ignore[arg-type]  # its stub means one element
    return b"".join(commands)


def post_to_api(pipe: Connection, port: int, per_request: int, at_once: int) -> None:
    connections = [HttpConnection(port) for _ in range(at_once)]

    def prepare(prepared: Preparation, beats: range) -> list[bytes]:
        starts = range(0, len(beats), per_request)
        return [_request(prepared.fleet, beats[start : start + per_request]) for start in starts]

    def send(_heartbeats: int, requests: list[bytes]) -> None:
        used = connections[: len(requests)]
        for connection, request in zip(used, requests, strict=True):
            connection.send(request)
        for connection in used:
            connection.receive()

    _serve(pipe, prepare, send)


def _request(fleet: Fleet, beats: range) -> bytes:
    heartbeats = [fleet.heartbeat(n % fleet.size, n // fleet.size + 1) for n in beats]
    if len(heartbeats) == 1:
        path = f"/api/v1/agents/{heartbeats[0].agent_id}/heartbeat"
        return post(path, msgspec.json.encode(heartbeats[0]))
    return post("/api/v1/heartbeats", msgspec.json.encode({"heartbeats": heartbeats}))


def send_updates(pipe: Connection, database_url: str, table: PeerTable) -> None:
    with asyncio.Runner() as runner:
        connection = runner.run(asyncpg.connect(plain_url(database_url)))

        def prepare(prepared: Preparation, beats: range) -> list[list[Any]]:
            return _update_slice(prepared, beats, with_documents=table.name == JSON.name)

        def send(_heartbeats: int, columns: list[list[Any]]) -> None:
            columns[1] = [datetime.now(UTC)] * len(columns[0])
            # The driver prepares it once and keeps it.
            runner.run(connection.fetch(table.upsert, *columns))

        _serve(pipe, prepare, send)
        runner.run(connection.close())


def _update_slice(prepared: Preparation, beats: range, *, with_documents: bool) -> list[list[Any]]:
    fleet = prepared.fleet
    # One statement can update an agent once only; no tick is so long that it goes round a fleet.
    reports = [(n % fleet.size, n // fleet.size + 1) for n in beats]
    figures = [fleet.figures(*report) for report in reports]
    documents = [metrics_document(fleet, *report) if with_documents else "" for report in reports]
    return [
        [fleet.agent_id(number) for number, _ in reports],
        [],
        [each.vram_gb for each in figures],
        [each.cores for each in figures],
        [each.load for each in figures],
        documents,
    ]


def _serve(
    pipe: Connection, prepare: Callable[[Preparation, range], Any], send: Callable[[int, Any], None]
) -> None:
    """Runs until the other end of the pipe is closed."""
    with suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        while True:
            prepared: Preparation | str = pipe.recv()
            if isinstance(prepared, str):
                continue  # a stop that crossed the end of what was prepared
            beats = range(prepared.first, prepared.first + prepared.count)
            starts = range(0, len(beats), prepared.slice_size)
            parts = [beats[start : start + prepared.slice_size] for start in starts]
            slices = [(len(part), prepare(prepared, part)) for part in parts]
            pipe.send("prepared")
            pipe.recv()
            try:
                pipe.send(_send_all(pipe, prepared, slices, send))
            except (OSError, asyncpg.PostgresError, hiredis.ReplyError) as error:
                pipe.send(error)


def _send_all(
    pipe: Connection, prepared: Preparation, slices: list[tuple[int, Any]], send: Callable[[int, Any], None]
) -> Sent:
    at, count = [time.perf_counter()], [prepared.first]
    started = at[0]
    for i, (heartbeats, each) in enumerate(slices):
        wait_s = started + i * prepared.tick_s - time.perf_counter()
        if pipe.poll(max(0.0, wait_s)):
            pipe.recv()
            break
        at.append(time.perf_counter())
        count.append(count[-1] + heartbeats)
        send(heartbeats, each)
    at.append(time.perf_counter())
    count.append(count[-1])
    return Sent(at, count)
