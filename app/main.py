"""The API process: wiring and lifespan, nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI

from app.api.application import build_api
from app.api.wiring import State, Wiring
from app.index.opening import open_index
from app.record import open_record
from app.service.agents import AgentService
from app.service.clock import SystemClock
from app.service.orchestrator import OrchestratorService
from app.settings import Settings


def create_app(settings: Settings, *, wiring: Wiring | None = None) -> FastAPI:
    """Builds the API; stores are opened when it starts and closed when it ends.

    Args:
        settings: of this process.
        wiring: what to work with instead of real stores; the caller closes it.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[State]:
        if wiring is not None:
            yield {"wiring": wiring}
            return
        async with AsyncExitStack() as stores:
            index = open_index(settings)
            stores.push_async_callback(index.close)
            record = open_record(settings)
            stores.push_async_callback(record.close)
            orchestrator = OrchestratorService(
                index.capacity,
                record.capacity,
                clock=SystemClock(),
                offline_after_s=settings.offline_after_s,
                index_timeout_s=settings.redis_timeout_s,
                record_timeout_s=settings.database_timeout_s,
            )
            yield {
                "wiring": Wiring(
                    settings=settings,
                    orchestrator=orchestrator,
                    agents=AgentService(index.capacity, record.agents),
                    index=index.capacity,
                    log=index.log,
                    record=record.agents,
                )
            }

    return build_api(lifespan)
