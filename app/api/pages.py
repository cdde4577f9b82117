"""The dashboard's pages and the files they are made of. What they show is there before any script runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from app.api.agents import path_agent_id
from app.api.html import lines, page
from app.api.wiring import Wiring, wiring_of
from app.errors import AgentNotFoundError, HeadroomError, UnavailableError
from app.models.agent import RegisteredAgent
from app.models.capacity import MAX_MIN_CORES, AgentCapacity, AvailableCapacity, CapacityQuery, GpuType
from app.models.identity import DEFAULT_AGENT_TYPE, AgentId
from app.models.insight import Overall, PoolTotals
from app.web.figures import Totals, gigabytes, tenths, whole
from app.web.rendering import Page

_SHELL: Final = ("dom", "format", "page")
FLEET: Final = Page(
    path="/",
    template="fleet.html",
    script="page-fleet",
    modules=(*_SHELL, "feed", "fleet", "map", "chart", "trend"),
)
POOLS: Final = Page(
    path="/pools", template="pools.html", script="page-pools", modules=(*_SHELL, "feed", "chart", "trend")
)
WAITING: Final = Page(path="/waiting", template="waiting.html", script="page-waiting", modules=_SHELL)
HEALTH: Final = Page(path="/health", template="health.html", script="page-health", modules=_SHELL)
AGENT: Final = Page(
    path="/agents/", template="agent.html", script="page-agent", modules=(*_SHELL, "feed", "chart", "trend")
)

DOCS: Final = Page(path="/docs", template="docs.html", script="page-docs", modules=_SHELL, foreign=True)

_FIRST_ROWS: Final = 25
_FIRST_POOLS: Final = 50
_SHOWN_POOLS: Final = 8


async def fleet(request: Request) -> Response:
    wiring = wiring_of(request)
    ask = _ask(request.query_params)
    rows, overall = await _summary(wiring)
    found, total = await _found(wiring, ask)
    totals = Totals.of(overall.rows)
    redis_line = wiring.redis_lines.get("find", "")
    return page(
        request,
        FLEET,
        data={"ask": ask, "default_type": DEFAULT_AGENT_TYPE, "redis_line": redis_line},
        lines=lines("/", "/api/v1/agents/available-capacity", redis_line),
        ask=ask,
        subtitle=f"{totals.agents} agents" if overall.pools else "",
        totals=totals,
        found={"total": total, "agents": [_listed(row) for row in found]},
        pools=[_pool(row) for row in rows[:_SHOWN_POOLS]],
        pools_shown=_shown(rows[:_SHOWN_POOLS], overall),
    )


async def pools(request: Request) -> Response:
    wiring = wiring_of(request)
    rows, overall = await _summary(wiring)
    redis_line = wiring.redis_lines.get("pools", "").replace("TYPE", DEFAULT_AGENT_TYPE)
    shown_lines = lines("/pools", "/api/v1/capacity/summary", redis_line)
    return page(
        request,
        POOLS,
        data={},
        lines=shown_lines,
        rows=[_pool(row) for row in rows],
        pools_shown=_shown(rows, overall),
    )


async def waiting(request: Request) -> Response:
    shown_lines = lines("/waiting", "/api/v1/waiting", wiring_of(request).redis_lines.get("waiting", ""))
    return page(request, WAITING, data={}, lines=shown_lines)


async def health(request: Request) -> Response:
    shown_lines = lines("/health", "/api/v1/health", wiring_of(request).redis_lines.get("health", ""))
    return page(request, HEALTH, data={}, lines=shown_lines, parts=())


async def docs(request: Request) -> Response:
    return page(request, DOCS, data={})


async def agent(request: Request) -> Response:
    wiring = wiring_of(request)
    agent_id = path_agent_id(request)
    known, capacity = await _known(wiring, agent_id)
    redis_line = wiring.redis_lines.get("agent", "").replace("AGENT", agent_id)
    return page(
        request,
        AGENT,
        data={"agent_id": agent_id},
        lines=lines(f"/agents/{agent_id}", f"/api/v1/agents/{agent_id}/capacity", redis_line),
        title=agent_id if known is None else known.hostname or agent_id,
        status="" if capacity is None else capacity.status.value,
        agent_id=agent_id,
        facts=() if capacity is None else _facts(capacity),
    )


async def _known(wiring: Wiring, agent_id: AgentId) -> tuple[RegisteredAgent | None, AgentCapacity | None]:
    """What record and index say, each None while it is away. Raises AgentNotFoundError when both know nobody."""
    known = capacity = None
    try:
        known = await wiring.record.agent(agent_id)
        capacity = (await wiring.orchestrator.get(agent_id)).agent
    except AgentNotFoundError:
        if known is None:
            raise
    except UnavailableError:
        pass
    return known, capacity


def _facts(capacity: AgentCapacity) -> tuple[tuple[str, str], ...]:
    vram, total = capacity.gpu_vram_available_gb, capacity.gpu_vram_total_gb
    return (
        ("Free VRAM", f"{gigabytes(vram)} of {gigabytes(total)}"),
        ("Free cores", f"{capacity.cpu_cores_available} of {capacity.cpu_cores_physical}"),
        ("Free memory", gigabytes(capacity.memory_available_gb)),
        ("Load", tenths(capacity.cpu_load_1min)),
    )


def _ask(sent: Mapping[str, str]) -> dict[str, Any]:
    """What the address asks for. People type addresses: what cannot be read is left out, never an error."""
    return {
        "vram": _amount(sent.get("vram"), 0.0),
        "cores": max(1, min(MAX_MIN_CORES, round(_amount(sent.get("cores"), 1)))),
        "type": sent.get("type", DEFAULT_AGENT_TYPE)[:32],
        "pool": sent.get("pool", "")[:128],
        "gpu": sent.get("gpu", "") if sent.get("gpu") in set(GpuType) else "",
        "show": sent.get("show", "")[:16],
        "q": sent.get("q", "")[:255],
    }


def _amount(text: str | None, default: float) -> float:
    try:
        amount = float(text or default)
    except ValueError:
        return default
    return amount if math.isfinite(amount) and amount >= 0 else default


async def _summary(wiring: Wiring) -> tuple[list[PoolTotals], Overall]:
    """The largest pools, and the totals of all."""
    try:
        return (await wiring.insight.summary(limit=_FIRST_POOLS))[0], await wiring.insight.overall()
    except UnavailableError:
        return [], Overall(rows=[], pools=0)


def _shown(rows: Sequence[PoolTotals], overall: Overall) -> str:
    """How many of the pools these rows are about; empty where it is all of them."""
    shown = len({(row.agent_type, row.pool_name) for row in rows})
    return f"{whole(shown)} of {whole(overall.pools)}" if shown < overall.pools else ""


async def _found(wiring: Wiring, ask: Mapping[str, Any]) -> tuple[list[AvailableCapacity], str]:
    query = CapacityQuery(
        min_gpu_vram_gb=ask["vram"],
        min_cpu_cores=ask["cores"],
        agent_type=ask["type"],
        pool_name=ask["pool"] or None,
        gpu_type=GpuType(ask["gpu"]) if ask["gpu"] else None,
        limit=_FIRST_ROWS,
    )
    try:
        found = await wiring.orchestrator.find(query)
    except HeadroomError:
        # Away, or asked for what no search can have: the page says so itself once its script runs.
        return [], ""
    total = found.total if found.total is not None else len(found.agents)
    return found.agents, f"{whole(total)} {'agent fits' if total == 1 else 'agents fit'}"


def _listed(row: AvailableCapacity) -> dict[str, str]:
    return {
        "agent_id": row.agent_id,
        "pool_name": row.pool_name,
        "gpu_vram_available_gb": tenths(row.gpu_vram_available_gb),
        "cpu_cores_available": str(row.cpu_cores_available),
    }


def _pool(row: PoolTotals) -> dict[str, str]:
    return {
        "pool_name": row.pool_name,
        "agent_type": row.agent_type,
        "gpu_type": row.gpu_type.value,
        "placeable": whole(row.placeable),
        "online": whole(row.online),
        "busy": whole(row.busy),
        "cordoned": whole(row.cordoned),
        "offline": whole(row.offline),
        "vram": gigabytes(row.gpu_vram_available_gb),
        "vram_total": gigabytes(row.gpu_vram_total_gb),
        "cores": whole(row.cpu_cores_available),
        "cores_total": whole(row.cpu_cores_physical),
    }
