"""What the handlers work with, built by the entry point and handed over in the lifespan's state."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TypedDict, cast

import msgspec
from starlette.requests import Request

from app.api.sse import encode_change
from app.service.agents import AgentService
from app.service.audience import Audience
from app.service.cordon import CordonService
from app.service.feed import FeedHub
from app.service.fleet import FleetService
from app.service.gauges import Gauges
from app.service.intake import HeartbeatIntake
from app.service.orchestrator import OrchestratorService
from app.service.planner import WorkPlanner
from app.service.ports import (
    AgentRecord,
    CapacityIndex,
    CapacityRecord,
    ChangeFeed,
    Clock,
    CordonIndex,
    CordonRecord,
    FleetIndex,
    FleetInsight,
    HealthIndex,
    HeartbeatLog,
    PlanRecord,
    TotalsRecord,
)
from app.service.waiting import WaitingService
from app.settings import Settings


class Ports(msgspec.Struct, frozen=True, kw_only=True):
    """The world as the entry point opened it."""

    index: CapacityIndex
    cordons: CordonIndex
    fleet: FleetIndex
    feed: ChangeFeed
    insight: FleetInsight
    health: HealthIndex
    log: HeartbeatLog
    recorded_capacity: CapacityRecord
    recorded_agents: AgentRecord
    recorded_cordons: CordonRecord
    plans: PlanRecord
    clock: Clock
    recorded_totals: TotalsRecord
    redis_lines: Mapping[str, str] = {}


class Wiring(msgspec.Struct, frozen=True, kw_only=True):
    settings: Settings
    orchestrator: OrchestratorService
    agents: AgentService
    cordons: CordonService
    fleet: FleetService
    intake: HeartbeatIntake
    hub: FeedHub
    audience: Audience
    waiting: WaitingService
    insight: FleetInsight
    health: HealthIndex
    gauges: Gauges
    planner: WorkPlanner
    draining: asyncio.Event
    index: CapacityIndex
    record: AgentRecord
    clock: Clock
    totals: TotalsRecord
    redis_lines: Mapping[str, str]

    def drain(self) -> None:
        """Lets go of everybody who waits or listens: this process ends, and another one will answer them."""
        self.draining.set()
        self.waiting.drain()


class State(TypedDict):
    wiring: Wiring


def wire(settings: Settings, ports: Ports) -> Wiring:
    """Builds the use cases over the ports."""
    orchestrator = OrchestratorService(
        ports.index,
        ports.recorded_capacity,
        clock=ports.clock,
        offline_after_s=settings.offline_after_s,
        index_timeout_s=settings.redis_timeout_s,
        record_timeout_s=settings.database_timeout_s,
    )
    hub = FeedHub(ports.feed, block_s=settings.stream_block_s)
    return Wiring(
        settings=settings,
        orchestrator=orchestrator,
        hub=hub,
        audience=Audience(hub, encode_change, most=settings.max_waiting),
        waiting=WaitingService(orchestrator, hub, most=settings.max_waiting),
        insight=ports.insight,
        planner=WorkPlanner(
            orchestrator,
            ports.insight,
            hub,
            ports.plans,
            clock=ports.clock,
            most_open=settings.max_open_tasks,
        ),
        health=ports.health,
        gauges=Gauges(ports.insight, ports.health, timeout_s=settings.redis_timeout_s),
        draining=asyncio.Event(),
        agents=AgentService(ports.index, ports.recorded_agents),
        cordons=CordonService(
            ports.cordons, ports.index, ports.recorded_agents, ports.fleet, ports.recorded_cordons
        ),
        fleet=FleetService(ports.fleet, ports.recorded_agents),
        intake=HeartbeatIntake(
            ports.log,
            interval_s=settings.heartbeat_interval_s,
            offline_after_s=settings.offline_after_s,
            target_per_s=settings.heartbeat_target_per_s,
            max_backlog=settings.stream_max_entries,
        ),
        index=ports.index,
        record=ports.recorded_agents,
        clock=ports.clock,
        totals=ports.recorded_totals,
        redis_lines=ports.redis_lines,
    )


def wiring_of(request: Request) -> Wiring:
    return cast(State, request.scope["state"])["wiring"]
