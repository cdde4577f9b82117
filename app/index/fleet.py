"""The whole fleet, page by page, from the agents' hashes."""

from __future__ import annotations

import re
from typing import Any, Final

import redis.asyncio as aredis

from app.errors import InvalidCursorError
from app.index.connect import send_reads, unavailable
from app.index.epoch import EpochGuard
from app.index.keys import Keys
from app.models.capacity import AgentStatus, GpuType
from app.models.fleet import FleetAgent, FleetPage
from app.models.identity import AgentId, StreamId

_SLICE: Final = 250
"""Hashes read in one round trip: about a millisecond of Redis's time, so that lookups get their turn."""

_FIELDS: Final = (
    "hostname",
    "agent_type",
    "pool_name",
    "gpu_type",
    "status",
    "indexed",
    "cordon",
    "gpu_vram_available_gb",
    "gpu_vram_total_gb",
    "cpu_cores_available",
    "cpu_cores_physical",
)
_SETS: Final = ("seen", "silent", "offline")
_CURSOR: Final = re.compile(r"(seen|silent|offline)\.([0-9]{1,19})", re.ASCII)


class RedisFleet:
    """Implements `FleetIndex` on one shard."""

    def __init__(self, client: aredis.Redis, keys: Keys, epochs: EpochGuard) -> None:
        self._client = client
        self._keys = keys
        self._epochs = epochs

    async def page(self, *, limit: int, cursor: str | None = None) -> FleetPage:
        name, scan = _read_cursor(cursor)
        with unavailable():
            await self._epochs.trusted()
            version = await self._newest_version()
            agents: list[FleetAgent] = []
            while len(agents) < limit:
                found: Any = await self._client.zscan(getattr(self._keys, name), scan, count=_SLICE)
                scan, members = found
                agents += await self._agents(name, members)
                if scan == 0:
                    following = _SETS[_SETS.index(name) + 1 :]
                    if not following:
                        return FleetPage(agents=agents, version=version)
                    name = following[0]
        return FleetPage(agents=agents, version=version, cursor=f"{name}.{scan}")

    async def _newest_version(self) -> StreamId:
        last: Any = await self._client.xrevrange(self._keys.events, count=1)
        return StreamId.parse(last[0][0]) if last else StreamId(0)

    async def _agents(self, name: str, members: list[tuple[bytes, float]]) -> list[FleetAgent]:
        pipeline = self._client.pipeline(transaction=False)
        for agent_id, _ in members:
            pipeline.hmget(self._keys.agent(agent_id.decode()), _FIELDS)
        rows = await send_reads(pipeline)
        heard = name == "seen"
        return [
            _agent(AgentId(agent_id.decode()), round(seen), [value or b"" for value in values], heard=heard)
            for (agent_id, seen), values in zip(members, rows, strict=True)
            if values and values[4]
        ]


def _read_cursor(cursor: str | None) -> tuple[str, int]:
    if cursor is None:
        return _SETS[0], 0
    parsed = _CURSOR.fullmatch(cursor)
    if parsed is None:
        raise InvalidCursorError
    return parsed[1], int(parsed[2])


def _agent(agent_id: AgentId, seen_ms: int, values: list[bytes], *, heard: bool) -> FleetAgent:
    hostname, agent_type, pool, gpu, status, indexed, cordon, *amounts = (value.decode() for value in values)
    vram, total_vram, cores, physical = amounts
    place = indexed.split(" ")
    return FleetAgent(
        agent_id=agent_id,
        hostname=hostname,
        agent_type=agent_type,
        pool_name=pool,
        gpu_type=GpuType(gpu or "none"),
        # One that was taken out reads as offline even before it is declared so.
        status=AgentStatus(status) if heard else AgentStatus.OFFLINE,
        placeable=len(place) == 4 and ":" not in place[2],
        cordoned=bool(cordon),
        gpu_vram_available_gb=float(vram or 0),
        gpu_vram_total_gb=float(total_vram or 0),
        cpu_cores_available=int(cores or 0),
        cpu_cores_physical=int(physical or 0),
        seen_ms=seen_ms,
    )
