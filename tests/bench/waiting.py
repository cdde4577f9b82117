"""Waiting, measured: from the 202 of a heartbeat to the answer of the search that waited for it, among others."""

from __future__ import annotations

import asyncio
import json
import resource
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import msgspec
import redis.asyncio as aredis

from app.index.keys import Keys
from app.models.identity import AgentId
from tests.bench.filling import fill
from tests.bench.fleets import AGENT_TYPE, make_fleet
from tests.bench.lookups import Grounds
from tests.bench.measure import percentile
from tests.bench.oracle import WrongAnswerError
from tests.bench.programs import worker
from tests.bench.web import get, post
from tests.waiting import wait_until_async

_WAIT_S: Final = 280
_OPENED_AT_ONCE: Final = 200
_SETTLE_S: Final = 0.02
_MORE_THAN_ANYBODY_GB: Final = 1_000.0
_PROBE: Final = AgentId("ffffffff-ffff-4fff-8fff-ffffffffffff")
_CONNECTIONS: Final = 16_000


class Crowd(msgspec.Struct, frozen=True, kw_only=True):
    """How many others wait, each for something else, in a fleet of so many agents; how often it is measured."""

    others: int
    rounds: int
    agents: int


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """All from the 202 of a heartbeat on, in milliseconds.

    Attributes:
        visible_p50_ms: until the index has what it says: the delay that every search has.
        beyond_p50_ms: what the answer of a waiting search takes on top of that, median against median.
    """

    others: int
    agents: int
    rounds: int
    answered_p50_ms: float
    answered_p99_ms: float
    visible_p50_ms: float
    beyond_p50_ms: float
    checked: int


def allow_connections() -> None:
    """As many as the system lets this process, and what it starts, have; before anything is started."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _CONNECTIONS if hard == resource.RLIM_INFINITY else min(hard, _CONNECTIONS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def measure_waiting(grounds: Grounds, crowd: Crowd, *, tell: Callable[[str], None]) -> Waiting:
    """Raises WrongAnswerError when somebody is answered who should not be, or otherwise than with the probe."""
    tell("loading")
    grounds.valkey.flush()
    fill(grounds.valkey.url, make_fleet("mixed", crowd.agents), pool=grounds.pool)
    with worker("ingest", grounds.environment):
        return asyncio.run(_measure(grounds, crowd, tell))


async def _measure(grounds: Grounds, crowd: Crowd, tell: Callable[[str], None]) -> Waiting:
    async with aredis.Redis.from_url(grounds.valkey.url) as client:
        probe = _Probe(grounds.api_port, client)
        await probe.report()
        tell(f"{crowd.others:,} others come in")
        async with _others(probe, crowd.others) as others:
            tell("measuring")
            answered, visible = [], []
            # In turns, so that what else the machine does falls on both alike.
            for _ in range(crowd.rounds):
                answered.append(await probe.until_answered(others=crowd.others))
                visible.append(await probe.until_visible())
            if any(other.done() for other in others):
                raise WrongAnswerError("somebody was answered who waits for more than there is")
    answered.sort()
    answered_p50_ms, visible_p50_ms = (
        round(1000 * percentile(sorted(each), 0.5), 2) for each in (answered, visible)
    )
    return Waiting(
        others=crowd.others,
        agents=crowd.agents,
        rounds=crowd.rounds,
        answered_p50_ms=answered_p50_ms,
        answered_p99_ms=round(1000 * percentile(answered, 0.99), 2),
        visible_p50_ms=visible_p50_ms,
        beyond_p50_ms=round(answered_p50_ms - visible_p50_ms, 2),
        checked=crowd.rounds + crowd.others,
    )


class _Probe:
    """The one agent whose free memory grows, a little with every report."""

    def __init__(self, port: int, client: aredis.Redis) -> None:
        self._port = port
        self._client = client
        self._vram_gb = _MORE_THAN_ANYBODY_GB

    async def report(self) -> float:
        """Returns when it was accepted (`perf_counter`)."""
        self._vram_gb += 0.5
        metrics = {"gpu_vram_available_gb": self._vram_gb, "cpu_cores_available": 4}
        body = msgspec.json.encode({"agent_type": AGENT_TYPE, "resource_metrics": metrics})
        await _exchange(self._port, post(f"/api/v1/agents/{_PROBE}/heartbeat", body))
        return time.perf_counter()

    async def search(self, above_gb: float, *, wait_s: float = _WAIT_S) -> list[str]:
        """The agents with that much more than the probe has now."""
        path = "/api/v1/agents/available-capacity"
        wanted = f"min_gpu_vram_gb={self._vram_gb + above_gb}&agent_type={AGENT_TYPE}&wait_s={wait_s}"
        rows = json.loads(await _exchange(self._port, get(f"{path}?{wanted}")))
        return [row["agent_id"] for row in rows]

    async def until_answered(self, *, others: int) -> float:
        search = asyncio.create_task(self.search(0.5))
        await self.until_waiting(others + 1)
        await asyncio.sleep(_SETTLE_S)
        accepted = await self.report()
        found = await search
        took_s = time.perf_counter() - accepted
        if found != [_PROBE]:
            raise WrongAnswerError(f"a waiting search found {found} instead of the one that fits")
        return took_s

    async def until_visible(self) -> float:
        accepted = await self.report()
        while await self._client.zscore(Keys().vram(AGENT_TYPE), _PROBE) != self._vram_gb:
            pass
        return time.perf_counter() - accepted

    async def until_waiting(self, searches: int) -> None:
        """Returns once so many wait."""

        async def enough() -> bool:
            lines = (await _exchange(self._port, get("/metrics"))).decode().splitlines()
            waiters = next(line for line in lines if line.startswith("headroom_waiters "))
            return float(waiters.split()[1]) >= searches

        await wait_until_async(enough, timeout_s=120, interval_s=0.02, what=f"{searches} waiting searches")


@asynccontextmanager
async def _others(probe: _Probe, count: int) -> AsyncIterator[list[asyncio.Task[list[str]]]]:
    """Each waits for another amount that nobody will have."""
    tasks: list[asyncio.Task[list[str]]] = []
    try:
        for number in range(count):
            tasks.append(asyncio.create_task(probe.search(_MORE_THAN_ANYBODY_GB + number)))
            if len(tasks) % _OPENED_AT_ONCE == 0:
                await probe.until_waiting(len(tasks))
        await probe.until_waiting(len(tasks))
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _exchange(port: int, request: bytes) -> bytes:
    """One request on a connection of its own; returns the body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request.replace(b"\r\nHost:", b"\r\nConnection: close\r\nHost:", 1))
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        if not head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 202")):
            raise ConnectionError(f"the API answered {head[:200]!r}")
        return body
    finally:
        writer.close()
