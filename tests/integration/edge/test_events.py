"""Server-sent events and waiting searches over a real server and a real index."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from app.index.opening import Index
from app.models.cordon import Cordon
from app.models.heartbeat import Heartbeat
from app.telemetry import LISTENERS, LISTENERS_DROPPED, WAITERS, WAITERS_VRAM_BYTES
from tests.indexing import agent_id, apply_everything, heartbeat, opened_index
from tests.logs import moment
from tests.serving import exchange, http_request
from tests.waiting import PATIENCE_S, wait_until

SEARCH = "/api/v1/agents/available-capacity"


class Event(dict[str, Any]):
    """One event as a browser would see it, with `id` and `event` beside its data."""


class Listening:
    """A listener in a thread of its own; `events` grows."""

    def __init__(self, port: int, query: str = "", *, last: str | None = None) -> None:
        self.events: list[Event] = []
        self.id = ""
        self.comments = 0
        self.ended = False
        self._port, self._query = port, query
        self._headers = {} if last is None else {"Last-Event-ID": last}
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        request = http_request("GET", f"/api/v1/events{self._query}", None, **self._headers)
        self._socket.sendall(request)
        lines = self._socket.makefile("rb")
        fields: dict[str, str] = {}
        try:
            for raw in lines:
                line = raw.decode().rstrip("\r\n")
                name, _, value = line.partition(": ")
                if line.startswith(":"):
                    self.comments += 1
                elif name in {"id", "event", "data"}:
                    fields[name] = value
                    self.id = fields.get("id", self.id)
                elif not line and "data" in fields:
                    self.events.append(Event(json.loads(fields["data"]), id=fields["id"], event=fields["event"]))
                    fields = {}
        except OSError:
            pass
        self.ended = True

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE_S)
        self._socket.close()

    def kinds(self) -> list[str]:
        return [event["kind"] for event in self.events]

    def until(self, count: int) -> list[Event]:
        wait_until(lambda: len(self.events) >= count, what=f"{count} events, not {self.events}")
        return self.events


@contextmanager
def listening(port: int, query: str = "", *, last: str | None = None) -> Iterator[Listening]:
    listener = Listening(port, query, last=last)
    try:
        wait_until(lambda: listener.id, what="the first id")
        yield listener
    finally:
        listener.close()


@pytest.fixture
async def index(port: int, edge_settings: Any) -> AsyncIterator[Index]:
    """The index behind the server, empty but for its epoch and its past changes."""
    async with opened_index(edge_settings, epoch=False) as opened:
        for number in range(1, 60):
            await opened.capacity.forget(agent_id(number))
        await apply_everything(opened)
        yield opened


async def report(index: Index, *heartbeats: Heartbeat) -> None:
    await index.log.append(heartbeats)
    await apply_everything(index)


async def test_changes_are_told_as_they_happen(port: int, index: Index) -> None:
    with listening(port) as listener:
        await report(index, heartbeat(1, vram=12.5, cores=4, pool_name="a b"))
        await index.cordons.cordon(agent_id(1), Cordon(reason="r", actor="a", since=moment(0)))
        await index.cordons.uncordon(agent_id(1))
        await index.capacity.forget(agent_id(1))
        events = await asyncio.to_thread(listener.until, 4)
    assert listener.kinds() == ["capacity", "cordon", "uncordon", "forgotten"]
    assert [event["event"] for event in events] == listener.kinds()
    first = {name: value for name, value in events[0].items() if name not in {"id", "event"}}
    assert first == {
        "kind": "capacity",
        "agent_id": agent_id(1),
        "agent_type": "desktop",
        "pool_name": "a b",
        "placeable": True,
        "gpu_vram_available_gb": 12.5,
        "cpu_cores_available": 4,
        "status": "online",
    }
    assert [event["placeable"] for event in events] == [True, False, True, False]
    ids = [tuple(map(int, event["id"].split("-"))) for event in events]
    assert ids == sorted(set(ids))


async def test_a_listener_that_comes_back_misses_nothing(port: int, index: Index) -> None:
    with listening(port) as first:
        await report(index, heartbeat(1))
        await asyncio.to_thread(first.until, 1)
    last = first.events[-1]["id"]
    await report(index, heartbeat(2), heartbeat(3))
    for query, header in (("", last), (f"?after={last}", None), ("?after=0-0", last)):
        with listening(port, query, last=header) as again:
            await report(index, heartbeat(1, vram=float(time.monotonic_ns() % 1000)))
            events = await asyncio.to_thread(again.until, 3)
        assert [event["agent_id"] for event in events[:2]] == [agent_id(2), agent_id(3)]


async def test_a_listener_that_was_only_connected_knows_from_where_to_go_on(port: int, index: Index) -> None:
    with listening(port) as first:
        assert first.events == []
    await report(index, heartbeat(5))
    with listening(port, last=first.id) as again:
        events = await asyncio.to_thread(again.until, 1)
    assert events[0]["agent_id"] == agent_id(5)


async def test_all_there_is_begins_with_a_reset(port: int, index: Index) -> None:
    with listening(port, "?after=0-0") as listener:
        events = await asyncio.to_thread(listener.until, 1)
    assert events[0]["kind"] == "reset"
    assert events[0]["agent_id"] is None


async def test_filters_leave_out_what_is_not_wanted(port: int, index: Index) -> None:
    queries = ["?pool_name=p%20q", "?agent_type=infra", "?kinds=cordon,uncordon", "?kinds=forgotten&pool_name=x"]
    listeners = [Listening(port, query) for query in queries]
    try:
        for listener in listeners:
            await asyncio.to_thread(wait_until, lambda listener=listener: listener.id)
        await report(index, heartbeat(1, pool_name="p q"), heartbeat(2, agent_type="infra"), heartbeat(3))
        await index.cordons.cordon(agent_id(3), Cordon(reason="r", actor="a", since=moment(0)))
        expected = [("capacity", 1), ("capacity", 2), ("cordon", 3)]
        for listener, (kind, number) in zip(listeners, expected, strict=False):
            (event,) = await asyncio.to_thread(listener.until, 1)
            assert (event["kind"], event["agent_id"]) == (kind, agent_id(number))
        assert listeners[3].events == []
    finally:
        for listener in listeners:
            listener.close()


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("?after=now", {}),
        ("?after=-1", {}),
        ("?kinds=all", {}),
        ("?kinds=", {}),
        ("?kind=cordon", {}),
        ("?agent_type=Infra", {}),
        ("", {"Last-Event-ID": "x"}),
    ],
)
def test_what_cannot_be_listened_to_is_refused(port: int, target: str, headers: dict[str, str]) -> None:
    answer = exchange(port, http_request("GET", f"/api/v1/events{target}", None, **headers))
    assert (answer.status, answer.code) == (400, "invalid_query")


async def test_who_does_not_read_is_dropped_and_nobody_else_notices(port: int, index: Index) -> None:
    dropped = LISTENERS_DROPPED._value.get()
    with listening(port) as reader, socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        deaf.connect(("127.0.0.1", port))
        deaf.sendall(http_request("GET", "/api/v1/events"))
        await asyncio.to_thread(wait_until, lambda: LISTENERS._value.get() == 2)
        # Twice what a listener may leave unread, and what the sockets in between hold.
        sent = 0
        while LISTENERS_DROPPED._value.get() == dropped:
            beats = [heartbeat(n, vram=float(sent + n), pool_name="p" * 128) for n in range(1, 51)]
            await report(index, *beats)
            sent += 50
            assert sent < 40_000
        await asyncio.to_thread(wait_until, lambda: LISTENERS._value.get() == 1)
        await asyncio.to_thread(reader.until, sent)
    assert reader.ended


async def test_a_waiting_search_is_answered_when_something_fits(port: int, index: Index) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as client:
        query = {"min_gpu_vram_gb": 200, "wait_s": 300}
        waiting = [asyncio.create_task(client.get(SEARCH, params=query)) for _ in range(5)]
        await asyncio.to_thread(wait_until, lambda: WAITERS._value.get() == 5)
        assert WAITERS_VRAM_BYTES._value.get() == 5 * 200 * 2**30
        await report(index, heartbeat(1, vram=199.0), heartbeat(2, vram=201.0))
        for response in await asyncio.gather(*waiting):
            assert [row["agent_id"] for row in response.json()] == [agent_id(2)]
            assert response.headers["x-total-count"] == "1"
        empty = await client.get(SEARCH, params={"min_gpu_vram_gb": 300, "wait_s": 0.2})
        assert (empty.status_code, empty.json(), empty.headers["x-total-count"]) == (200, [], "0")


async def test_a_waiter_whose_client_has_gone_is_let_go(port: int, index: Index) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(http_request("GET", f"{SEARCH}?min_gpu_vram_gb=500&wait_s=300"))
        await asyncio.to_thread(wait_until, lambda: WAITERS._value.get() == 1)
    await asyncio.to_thread(wait_until, lambda: WAITERS._value.get() == 0)
    assert WAITERS_VRAM_BYTES._value.get() == 0


@pytest.mark.parametrize("wait_s", ["-1", "301", "nan", "", "1_0"])
def test_a_wait_that_is_too_long_or_no_time_is_refused(port: int, wait_s: str) -> None:
    answer = exchange(port, http_request("GET", f"{SEARCH}?wait_s={wait_s}"))
    assert (answer.status, answer.code) == (400, "invalid_query")
