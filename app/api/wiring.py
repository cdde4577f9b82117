"""What the handlers work with, built by the entry point and handed over in the lifespan's state."""

from __future__ import annotations

from typing import TypedDict, cast

import msgspec
from starlette.requests import Request

from app.service.agents import AgentService
from app.service.orchestrator import OrchestratorService
from app.service.ports import AgentRecord, CapacityIndex, HeartbeatLog
from app.settings import Settings


class Wiring(msgspec.Struct, frozen=True, kw_only=True):
    settings: Settings
    orchestrator: OrchestratorService
    agents: AgentService
    index: CapacityIndex
    log: HeartbeatLog
    record: AgentRecord


class State(TypedDict):
    wiring: Wiring


def wiring_of(request: Request) -> Wiring:
    return cast(State, request.scope["state"])["wiring"]
