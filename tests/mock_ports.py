"""Every port of the API as a mock, and the API over them."""

from __future__ import annotations

from typing import Any
from unittest.mock import AsyncMock

import httpx

from app.api.wiring import Ports as WiredPorts
from app.api.wiring import Wiring, wire
from app.errors import IndexUnavailableError
from app.main import create_app
from app.models.fleet import FleetPage
from app.models.heartbeat import Heartbeat
from app.models.identity import StreamId
from app.service.clock import SystemClock
from app.service.ports import IntakeLoad
from app.settings import Settings
from tests.serving import http_client

JSON = {"content-type": "application/json"}


class Ports:
    """The mocks by what they stand for; `call` sends one request."""

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings.model_validate(settings)
        self.index = AsyncMock()
        self.index.page.return_value = FleetPage(agents=[], version=StreamId(0))
        self.feed = AsyncMock()
        self.insight = AsyncMock()
        self.health = AsyncMock()
        self.health.health.side_effect = IndexUnavailableError
        self.record = AsyncMock()
        self.cordons = AsyncMock()
        self.plans = AsyncMock()
        self.totals = AsyncMock()
        self.log = AsyncMock()
        self.log.append.side_effect = self._append
        self.log.load.return_value = IntakeLoad()

    @staticmethod
    async def _append(heartbeats: list[Heartbeat]) -> list[StreamId]:
        return [StreamId(1_800_000_000_000, n) for n in range(len(heartbeats))]

    @property
    def wiring(self) -> Wiring:
        ports = WiredPorts(
            index=self.index,
            cordons=self.index,
            fleet=self.index,
            feed=self.feed,
            insight=self.insight,
            health=self.health,
            log=self.log,
            recorded_capacity=self.record,
            recorded_agents=self.record,
            recorded_cordons=self.cordons,
            plans=self.plans,
            recorded_totals=self.totals,
            clock=SystemClock(),
        )
        return wire(self.settings, ports)

    async def call(self, method: str, target: str, **request: Any) -> httpx.Response:
        async with http_client(create_app(self.settings, wiring=self.wiring)) as client:
            return await client.request(method, target, **request)

    async def post(self, target: str, body: bytes, **headers: str) -> httpx.Response:
        return await self.call("POST", target, content=body, headers={**JSON, **headers})

    @property
    def appended(self) -> list[Heartbeat]:
        return [beat for call in self.log.append.await_args_list for beat in call.args[0]]
