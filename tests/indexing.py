"""Opens the index for a test and drives its workers by hand, round by round."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from app.index.clock import IndexClock
from app.index.opening import Index, open_index
from app.models.capacity import GpuType
from app.models.heartbeat import Heartbeat, ResourceMetrics
from app.models.identity import AgentId
from app.settings import Settings
from workers.ingest import Ingest


def index_settings(redis_url: str, **changes: Any) -> Settings:
    quick = {"stream_block_s": 0.01, "takeover_after_s": 0.05}
    # A busy machine is no outage.
    patient = {"redis_timeout_s": 30.0, "stream_timeout_s": 60.0}
    return Settings.model_validate({"redis_url": redis_url, **quick, **patient, **changes})


@asynccontextmanager
async def opened_index(
    settings: Settings, *, clock: IndexClock | None = None, epoch: bool = True
) -> AsyncIterator[Index]:
    """An index with an open epoch, as after a rebuild from an empty record."""
    index = open_index(settings, purpose="test", clock=clock)
    try:
        if epoch:
            await index.upkeep.begin_rebuild("test", None)
            assert await index.upkeep.open_epoch("test")
        yield index
    finally:
        await index.close()


async def apply_everything(index: Index, *, ingest: Ingest | None = None) -> None:
    """Runs an ingest until the stream is drained."""
    worker = ingest if ingest is not None else Ingest(index.index_reader(), index.upkeep)
    while await unapplied(index):
        await worker.run_once()


async def unapplied(index: Index) -> bool:
    client = index.capacity._client
    groups = await client.xinfo_groups(index.keys.heartbeats)
    group = next(group for group in groups if group["name"] == b"index")
    if group["pending"]:
        return True
    after = group["last-delivered-id"].decode()
    return bool(await client.xrange(index.keys.heartbeats, f"({after}", "+", count=1))


def agent_id(number: int) -> AgentId:
    return AgentId(f"00000000-0000-4000-8000-{number:012x}")


def heartbeat(
    number: int,
    *,
    vram: float | None = 8.0,
    cores: int | None = 4,
    seq: int | None = None,
    boot_id: str = "boot",
    **fields: Any,
) -> Heartbeat:
    """A heartbeat of the numbered agent with so much free."""
    metrics = ResourceMetrics(gpu_vram_available_gb=vram, cpu_cores_available=cores, gpu_type=GpuType.NVIDIA)
    return Heartbeat(
        agent_id=agent_id(number),
        boot_id=None if seq is None else boot_id,
        seq=seq,
        **{"resource_metrics": metrics, **fields},
    )
