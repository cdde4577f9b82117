"""The API process: wiring and lifespan, nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI

from app.api.application import build_api
from app.api.wiring import Ports, State, Wiring, wire
from app.index.lines import redis_lines
from app.index.opening import consumer_name, open_index
from app.record import open_record
from app.service.clock import SystemClock
from app.service.receiving import ReceiverBeat
from app.settings import Settings
from workers.clock_watch import ClockWatch
from workers.runner import Loop, running
from workers.startup import StoreCheck


def create_app(settings: Settings, *, wiring: Wiring | None = None) -> FastAPI:
    """Builds the API; stores are opened when it starts and closed when it ends.

    Args:
        settings: of this process.
        wiring: what to work with instead of real stores; the caller closes it.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        if wiring is not None:
            app.state.drain = wiring.drain
            yield {"wiring": wiring}
            return
        async with AsyncExitStack() as stores:
            index = open_index(settings)
            stores.push_async_callback(index.close)
            record = open_record(settings)
            stores.push_async_callback(record.close)
            ports = Ports(
                index=index.capacity,
                cordons=index.cordons,
                fleet=index.fleet,
                feed=index.feed(),
                insight=index.insight,
                health=index.health,
                log=index.log,
                recorded_capacity=record.capacity,
                recorded_agents=record.agents,
                recorded_cordons=record.cordons,
                plans=record.plans,
                recorded_totals=record.totals,
                clock=SystemClock(),
                redis_lines=redis_lines(settings.redis_url or ""),
            )
            wired = wire(settings, ports)
            app.state.drain = wired.drain
            beat = ReceiverBeat(index.upkeep, consumer_name(), refused=wired.intake.take_refused)
            loops: Sequence[Loop] = [
                StoreCheck(index, record),
                beat,
                ClockWatch(index.upkeep),
                wired.hub,
                wired.waiting,
                wired.planner,
            ]
            drain_s = settings.shutdown_after_s - settings.requests_end_after_s
            app.state.loops = await stores.enter_async_context(running(loops, drain_s=drain_s))
            yield {"wiring": wired}

    return build_api(lifespan)


async def refuse_unfit(settings: Settings) -> None:
    """Raises StartupRefusedError for stores that this build must not work with; one that is away may come."""
    async with AsyncExitStack() as stores:
        index = open_index(settings, purpose="start")
        stores.push_async_callback(index.close)
        record = open_record(settings)
        stores.push_async_callback(record.close)
        await StoreCheck(index, record).run_once()
