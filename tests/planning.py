"""What the tests of the planner's client share: a small fleet that is known by heart, and ways to ask about it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from app.client import AsyncCapacityClient, CapacityClient
from app.index.opening import Index
from app.main import create_app
from app.models.capacity import AgentStatus, GpuType
from app.models.heartbeat import Heartbeat, ResourceMetrics
from app.models.identity import AgentId, StreamId
from app.models.log import LogEntry
from app.record import open_record
from app.settings import Settings
from tests.indexing import agent_id, apply_everything, index_settings, opened_index
from tests.serving import served

SILENT = 8
GOODBYE = 7

KINDS = ("blocking", "asyncio")

Ask = Callable[[Callable[[Any], Any]], Any]
"""Takes `lambda client: client.find(…)` and returns the answer, whichever client asks."""


def asker(kind: str, url: str, **options: Any) -> Ask:
    """Each question has a client of its own."""

    def ask(question: Callable[[Any], Any]) -> Any:
        if kind == "blocking":
            with CapacityClient(url, **options) as client:
                return question(client)
        return asyncio.run(ask_with_asyncio(url, question, **options))

    return ask


async def ask_with_asyncio(
    url: str, question: Callable[[AsyncCapacityClient], Awaitable[Any]], **options: Any
) -> Any:
    async with AsyncCapacityClient(url, **options) as client:
        return await question(client)


def machine(number: int, vram_gb: float, cores: int, **changes: Any) -> Heartbeat:
    """A heartbeat of a machine with so much free; `changes` are of its metrics or of the heartbeat."""
    metrics: dict[str, Any] = {
        "gpu_vram_available_gb": vram_gb,
        "gpu_vram_total_gb": max(vram_gb, 24.0),
        "cpu_cores_available": cores,
        "cpu_cores_physical": max(cores, 16),
        "cpu_load_1min": 0.5,
        "cpu_load_5min": 0.25,
        "cpu_percent": 10.0,
        "memory_available_gb": 32.0,
        "memory_percent": 50.0,
        "gpu_type": GpuType.NVIDIA,
    }
    metrics |= {name: changes.pop(name) for name in list(changes) if name in metrics}
    fields = {"hostname": f"host-{number}", "resource_metrics": ResourceMetrics(**metrics), **changes}
    return Heartbeat(agent_id=agent_id(number), **fields)


FLEET = (
    machine(1, 12.0, 4),
    machine(2, 16.0, 8),
    machine(3, 24.0, 12),
    machine(4, 80.0, 64, pool_name="training", memory_available_gb=256.0, cpu_load_1min=12.5),
    machine(5, 4.0, 2, gpu_type=GpuType.AMD),
    machine(6, 48.0, 32, agent_type="infra"),
    machine(GOODBYE, 96.0, 96, status=AgentStatus.OFFLINE),
)


@asynccontextmanager
async def fleet_index(redis_url: str, *, heartbeats: Sequence[Heartbeat] = FLEET) -> AsyncIterator[Index]:
    """An index with the fleet: five desktops and one infra machine, one that said goodbye, one long silent."""
    async with opened_index(index_settings(redis_url)) as index:
        await index.log.append(heartbeats)
        await apply_everything(index)
        long_ago = StreamId(int(time.time() * 1000) - 600_000)
        await index.upkeep.apply([(long_ago, machine(SILENT, 40.0, 40))])
        yield index


def fill(redis_url: str, *, heartbeats: Sequence[Heartbeat] = FLEET) -> None:
    """Leaves the fleet in Redis."""

    async def filled() -> None:
        async with fleet_index(redis_url, heartbeats=heartbeats):
            pass

    asyncio.run(filled())


def report(redis_url: str, *heartbeats: Heartbeat) -> None:
    """Takes further heartbeats all the way into the index."""

    async def reported() -> None:
        async with opened_index(index_settings(redis_url), epoch=False) as index:
            await index.log.append(heartbeats)
            await apply_everything(index)

    asyncio.run(reported())


def sweep(redis_url: str) -> None:
    """Takes the silent agents out, as a reaper would within a second."""

    async def swept() -> None:
        async with opened_index(index_settings(redis_url), epoch=False) as index:
            while await index.upkeep.sweep():
                pass

    asyncio.run(swept())


def fill_record(record_url: str, *, heartbeats: Sequence[Heartbeat] = FLEET) -> None:
    """Leaves the fleet in a migrated record, heard of just now."""

    async def filled() -> None:
        record = open_record(Settings(database_url=record_url))
        now_ms = int(time.time() * 1000)
        try:
            await record.writer.write(
                [LogEntry(StreamId(now_ms, number), beat) for number, beat in enumerate(heartbeats)]
            )
        finally:
            await record.close()

    asyncio.run(filled())


@contextmanager
def api(redis_url: str, record_url: str, **settings: Any) -> Iterator[str]:
    """A real API server; yields its URL."""
    wanted = Settings(redis_url=redis_url, database_url=record_url, **settings)
    with served(create_app(wanted)) as port:
        yield f"http://127.0.0.1:{port}"


def numbers(agents: Sequence[Any]) -> list[int]:
    return [number(agent.agent_id) for agent in agents]


def number(found: AgentId) -> int:
    return int(found.rsplit("-", 1)[1], 16)
