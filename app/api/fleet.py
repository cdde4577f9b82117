"""`GET /api/v1/fleet`: every agent, as compact as a map of ten thousand of them needs it."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from app.api.answers import NO_STORE, answer, compressed
from app.api.query import Parameter, read_query, whole
from app.api.wiring import wiring_of
from app.models.capacity import AgentStatus, GpuType, Source
from app.models.fleet import DEFAULT_FLEET_PAGE, MAX_FLEET_PAGE, FleetAgent, FleetPage

FLEET_CURSOR_PATTERN: Final = (
    r"^((seen|silent|offline)\.[0-9]{1,19}|record\.[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})$"
)
FLEET_PARAMETERS: Final = (
    whole("limit", "About how many agents.", least=1, most=MAX_FLEET_PAGE, default=DEFAULT_FLEET_PAGE),
    Parameter(
        name="cursor",
        description="The `cursor` of the page before.",
        read=str,
        schema={"type": "string", "pattern": FLEET_CURSOR_PATTERN},
    ),
)


class FleetAgentDocument(msgspec.Struct, frozen=True, array_like=True):
    """One agent as a list: a name for each figure of each agent would be most of the answer."""

    agent_id: str
    hostname: str
    agent_type: str
    pool_name: str
    gpu_type: GpuType
    status: AgentStatus
    placeable: bool
    cordoned: bool
    gpu_vram_available_gb: float
    gpu_vram_total_gb: float
    cpu_cores_available: int
    cpu_cores_physical: int
    seen_ms: int

    @classmethod
    def of(cls, agent: FleetAgent) -> FleetAgentDocument:
        return cls(*msgspec.structs.astuple(agent))


class FleetDocument(msgspec.Struct, frozen=True):
    """`fields` names the places of each agent's list; `cursor` is null at the end."""

    version: str
    source: Source
    fields: tuple[str, ...]
    agents: list[FleetAgentDocument]
    cursor: str | None

    @classmethod
    def of(cls, page: FleetPage) -> FleetDocument:
        return cls(
            str(page.version),
            page.source,
            FleetAgentDocument.__struct_fields__,
            [FleetAgentDocument.of(agent) for agent in page.agents],
            page.cursor,
        )


async def get_fleet(request: Request) -> Response:
    sent: dict[str, Any] = read_query(request, FLEET_PARAMETERS)
    page = await wiring_of(request).fleet.page(
        limit=sent.get("limit", DEFAULT_FLEET_PAGE), cursor=sent.get("cursor")
    )
    headers = dict(NO_STORE)
    if page.source == "record":
        headers["X-Capacity-Source"] = page.source
    return compressed(request, answer(FleetDocument.of(page), headers=headers))
