"""The simulated fleet delivers like real agents: quickly at first, evenly later, patiently when refused."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Self

import msgspec
import pytest
from rich.console import Console

from app.errors import StartupRefusedError
from tests.waiting import PATIENCE_S, wait_until, wait_until_async
from workers.simulate.command import Summary, simulate

Reply = tuple[int, dict[str, str], dict[str, Any]]
Batch = list[dict[str, Any]]


class Api:
    """Stands in for the API: keeps what came in, answers what `reply` says."""

    def __init__(self) -> None:
        self.batches: list[tuple[float, Batch]] = []
        self.connections: set[tuple[str, int]] = set()
        self.next_heartbeat_s = 30.0
        self.reply: Callable[[Batch], Reply] = self.accept
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"api": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def accept(self, batch: Batch) -> Reply:
        accepted = [{"index": index, "stream_id": f"1-{index}"} for index in range(len(batch))]
        return 202, {}, {"accepted": accepted, "rejected": [], "next_heartbeat_s": self.next_heartbeat_s}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def heartbeats(self) -> Batch:
        return [heartbeat for _, batch in self.batches for heartbeat in batch]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    api: ClassVar[Api]
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        assert self.path == "/api/v1/heartbeats"
        assert self.headers["content-type"] == "application/msgpack"
        body = self.rfile.read(int(self.headers["content-length"]))
        batch: Batch = msgspec.msgpack.decode(body)["heartbeats"]
        self.api.connections.add(self.client_address)
        status, headers, answer = self.api.reply(batch)
        if status == 202:
            self.api.batches.append((time.monotonic(), batch))
        content = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        """Keeps the test's output clean."""


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as server:
        yield server


async def run(api: Api, count: int, *, text: io.StringIO | None = None, **options: Any) -> tuple[Summary, str]:
    text = text or io.StringIO()
    options.setdefault("stop", asyncio.Event())
    summary = await simulate(count, url=api.url, console=Console(file=text, width=100), **options)
    return summary, text.getvalue()


async def test_the_whole_fleet_is_there_after_the_first_round(api: Api) -> None:
    summary, said = await run(api, 1_200, rounds=1)
    assert len({h["agent_id"] for h in api.heartbeats}) == 1_200
    assert all(len(batch) <= 1_000 for _, batch in api.batches)
    assert len(api.connections) <= 4
    assert (summary.accepted, summary.rejected, summary.deferred) == (1_200, 0, 0)
    assert "1,200 simulated agents reported within" in said
    assert "1,200 heartbeats accepted" in said


async def test_a_heartbeat_has_the_wire_form(api: Api) -> None:
    await run(api, 1, rounds=1)
    heartbeat = api.heartbeats[0]
    assert heartbeat["sent_at"].startswith("20")
    assert heartbeat["seq"] == 1
    assert heartbeat["resource_metrics"]["cpu_cores_physical"] > 0


async def test_later_rounds_are_spread_over_the_interval_that_the_server_names(api: Api) -> None:
    api.next_heartbeat_s = 1.0
    await run(api, 40, rounds=3, interval_s=30.0, profile="unlucky")
    rounds = Counter(h["agent_id"] for h in api.heartbeats)
    assert max(rounds.values()) == 3
    second = [(at, batch) for at, batch in api.batches if any(h["seq"] == 2 for h in batch)]
    assert len(second) >= 8
    assert max(len(batch) for _, batch in second) <= 6
    assert second[-1][0] - second[0][0] > 0.2


async def test_only_the_newest_is_kept_while_the_server_takes_nothing(api: Api) -> None:
    refusals = 3
    ended = asyncio.Event()

    def refuse_a_while(batch: Batch) -> Reply:
        nonlocal refusals
        refusals -= 1
        return (503, {"retry-after": "0"}, {"code": "index_unavailable"}) if refusals >= 0 else api.accept(batch)

    api.reply = refuse_a_while
    summary, said = await run(api, 3, rounds=1, interval_s=0.2, stop=ended)
    assert summary.deferred >= 9
    assert max(Counter(h["agent_id"] for h in api.heartbeats).values()) == 1
    assert max(h["seq"] for h in api.heartbeats) > 1
    assert said.count("503 index_unavailable") == 1
    assert "takes heartbeats again" in said


async def test_retry_after_is_honoured(api: Api) -> None:
    asked_at: list[float] = []

    def refuse_once(batch: Batch) -> Reply:
        asked_at.append(time.monotonic())
        return (429, {"retry-after": "1"}, {"code": "backlog_full"}) if len(asked_at) == 1 else api.accept(batch)

    api.reply = refuse_once
    await run(api, 1, rounds=1)
    assert asked_at[1] - asked_at[0] >= 1.0


async def test_a_refused_batch_is_counted_and_not_repeated(api: Api) -> None:
    api.reply = lambda _: (422, {}, {"code": "invalid_heartbeat"})
    summary, said = await run(api, 10, rounds=1)
    assert summary.rejected == 10
    assert summary.refusals == {"422 invalid_heartbeat": 1}
    assert "refused: 422 invalid_heartbeat, 1 times" in said


async def test_a_server_that_is_not_there_yet_is_waited_for() -> None:
    with Api() as gone:
        pass
    stop = asyncio.Event()
    text = io.StringIO()
    task = asyncio.create_task(run(gone, 5, stop=stop, text=text))
    await wait_until_async(lambda: "ConnectError" in text.getvalue(), what="a failed try")
    stop.set()
    summary, said = await task
    assert summary.accepted == 0
    assert summary.deferred >= 5
    assert "ConnectError" in said


async def test_unknown_profiles_and_servers_elsewhere_are_refused() -> None:
    with pytest.raises(StartupRefusedError, match="mixed"):
        await simulate(1, url="http://127.0.0.1:1", profile="nonsense")
    with pytest.raises(StartupRefusedError, match="this machine only"):
        await simulate(1, url="http://192.0.2.1:8000")


async def test_a_terminal_gets_a_bar(api: Api) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=120)
    # Every half second, so that the bar is drawn while it fills up and while the fleet reports.
    api.next_heartbeat_s = 0.5
    await simulate(20, url=api.url, rounds=3, console=console, live=True, stop=asyncio.Event())
    shown = text.getvalue()
    assert "first heartbeats" in shown
    assert "20/20" in shown
    assert "agents reporting" in shown
    assert re.search(r"[0-9.]+ heartbeats/s, [0-9]+ accepted, 0 rejected, 0 deferred, 0 away", shown)
    assert re.search(r"20 agents, [0-9.]+ s: 60 heartbeats accepted \([0-9.]+/s\), 0 rejected, 0 deferred", shown)
    assert "(p50)" in shown


def test_sigterm_ends_it_before_the_next_round_with_a_summary(api: Api) -> None:
    api.next_heartbeat_s = 3600.0
    program = (
        "import asyncio, sys; from workers.simulate.command import simulate; "
        "asyncio.run(simulate(50, url=sys.argv[1]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, api.url], stderr=subprocess.PIPE, text=True, env={**os.environ}
    )
    try:
        wait_until(lambda: len(api.heartbeats) == 50, what="the first round")
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0
        assert "50 agents" in said
    finally:
        process.kill()
        process.wait()
