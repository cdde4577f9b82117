"""Index, record, service and HTTP of one test, driven by hand on a clock that the test turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx
from fastapi import FastAPI

from app.api.wiring import Ports, wire
from app.index.clock import ManualClock
from app.index.keys import GROUP_INDEX
from app.index.opening import Index
from app.index.stream import GroupReader
from app.main import create_app
from app.models.heartbeat import Heartbeat
from app.models.log import LogEntry
from app.record import Record
from app.service.orchestrator import OrchestratorService
from app.service.ports import CapacityIndex
from app.settings import Settings
from tests.indexing import apply_everything
from tests.serving import http_client
from workers.ingest import Ingest

SEARCH = "/api/v1/agents/available-capacity"


class Stack:
    """Index, record, service and HTTP of one test, on one clock that the test turns."""

    def __init__(self, index: Index, record: Record, settings: Settings, clock: ManualClock) -> None:
        self.index = index
        self.record = record
        self.settings = settings
        self.clock = clock
        self.steady_s = 0.0
        self.service = self.service_over(index.capacity)
        reader = GroupReader(
            index.capacity._client, index.keys, GROUP_INDEX, "test", batch=100, block_s=0.01, takeover_after_s=10.0
        )
        self._ingest = Ingest(reader, index.upkeep)

    def service_over(self, index: CapacityIndex) -> OrchestratorService:
        return OrchestratorService(
            index,
            self.record.capacity,
            clock=self.clock,
            offline_after_s=self.settings.offline_after_s,
            index_timeout_s=self.settings.redis_timeout_s,
            steady_s=lambda: self.steady_s,
        )

    def app_over(self, index: CapacityIndex) -> FastAPI:
        return create_app(self.settings, wiring=wire(self.settings, self.ports_over(index)))

    def ports_over(self, index: CapacityIndex) -> Ports:
        return Ports(
            index=index,
            cordons=self.index.cordons,
            fleet=self.index.fleet,
            feed=self.index.feed(),
            insight=self.index.insight,
            health=self.index.health,
            log=self.index.log,
            recorded_capacity=self.record.capacity,
            recorded_agents=self.record.agents,
            recorded_cordons=self.record.cordons,
            plans=self.record.plans,
            recorded_totals=self.record.totals,
            clock=self.clock,
        )

    async def get(self, target: str, *, index: CapacityIndex | None = None) -> httpx.Response:
        async with http_client(self.app_over(index or self.index.capacity)) as client:
            return await client.get(target)

    async def report(self, *heartbeats: Heartbeat) -> None:
        """Takes heartbeats the whole way: into the log, and applied to index and record."""
        stream_ids = await self.index.log.append(heartbeats)
        await apply_everything(self.index, ingest=self._ingest)
        await self.record.writer.write(
            [LogEntry(stream_id, beat) for stream_id, beat in zip(stream_ids, heartbeats, strict=True)]
        )

    async def search(self, **wanted: Any) -> list[int]:
        """Numbers of the agents found over HTTP, in order."""
        response = await self.get(str(httpx.URL(SEARCH, params=wanted)))
        assert response.status_code == 200, response.text
        return numbers(response.json())


def numbers(rows: Sequence[Any]) -> list[int]:
    ids = [row["agent_id"] if isinstance(row, dict) else row.agent_id for row in rows]
    return [int(found.rsplit("-", 1)[1], 16) for found in ids]
