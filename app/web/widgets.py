"""What widgets show, as figures, and in the forms that other people's dashboards read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final
from urllib.parse import urlencode

import msgspec

from app.models.capacity import AgentCapacity, AgentStatus
from app.models.insight import Fit, PoolTotals, TrendPoint
from app.web import badges
from app.web.badges import Bar
from app.web.figures import gigabytes, tenths, whole

_SHOWN_POOLS: Final = 8


class View(StrEnum):
    """The widgets there are."""

    FIT = "fit"
    POOLS = "pools"
    MAP = "map"
    TREND = "trend"
    AGENT = "agent"


class Theme(StrEnum):
    LIGHT = "light"
    DARK = "dark"


class Form(StrEnum):
    """How the JSON is shaped: an object, a list of rows, or a badge for shields.io."""

    PLAIN = "plain"
    ROWS = "rows"
    SHIELDS = "shields"


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What one widget shows.

    Attributes:
        label: what it is about.
        message: the answer, in a few words.
        colour: how good that is.
        plain: the figures by name, flat where they can be.
        rows: the same as a list of objects.
        picture: draws it; None for a badge of label and message.
    """

    label: str
    message: str
    colour: str = badges.GOOD
    plain: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    picture: Callable[[], str] | None = None

    def json(self, form: Form) -> Any:
        if form is Form.ROWS:
            return self.rows
        if form is Form.SHIELDS:
            colour = self.colour.removeprefix("#")
            return {"schemaVersion": 1, "label": self.label, "message": self.message, "color": colour}
        return self.plain

    def svg(self) -> str:
        return badges.badge(self.label, self.message, self.colour) if self.picture is None else self.picture()


def wants(vram_gb: float, cores: int, pool: str | None) -> str:
    parts = [f"{tenths(vram_gb)} GB"] if vram_gb > 0 else []
    if cores > 1 or not parts:
        parts.append(f"{cores} {'core' if cores == 1 else 'cores'}")
    return " + ".join(parts) + (f" in {pool}" if pool else "")


def link(view: View, sent: Mapping[str, Any]) -> str:
    """Where the dashboard shows the same."""
    if view is View.AGENT and "agent_id" in sent:
        return f"/agents/{sent['agent_id']}"
    if view in {View.POOLS, View.TREND}:
        return "/pools"
    names = {"min_vram": "vram", "min_cores": "cores", "type": "type", "pool": "pool"}
    query = urlencode({short: sent[name] for name, short in names.items() if name in sent})
    return f"/?{query}" if query else "/"


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """One widget as the gallery shows it.

    Attributes:
        query: of its addresses.
        attributes: of the web component, as text.
        height: of its frame, in pixels.
    """

    view: View
    title: str
    about: str
    query: str
    attributes: str
    height: int


def gallery(agent_id: str | None) -> list[Shown]:
    """Args: agent_id: some agent for the card; it is left out without one."""
    shown = [
        Shown(
            view=View.FIT,
            title="Fit counter",
            about="How many agents have at least this much free, and how many such tasks fit.",
            query="min_vram=8&min_cores=4",
            attributes='min-vram="8" min-cores="4"',
            height=100,
        ),
        Shown(
            view=View.POOLS,
            title="Pool bars",
            about="Free VRAM of each pool, largest pool first.",
            query="",
            attributes="",
            height=232,
        ),
        Shown(
            view=View.MAP,
            title="Fleet map",
            about="Every agent by free VRAM and free cores, live.",
            query="min_vram=8&min_cores=4",
            attributes='min-vram="8" min-cores="4"',
            height=340,
        ),
        Shown(
            view=View.TREND,
            title="Trend",
            about="Free VRAM over the last 24 hours, of everything or of one pool.",
            query="",
            attributes="",
            height=190,
        ),
    ]
    if agent_id is None:
        return shown
    card = Shown(
        view=View.AGENT,
        title="Agent card",
        about="One agent: its status and what it has free.",
        query=f"agent_id={agent_id}",
        attributes=f'agent="{agent_id}"',
        height=128,
    )
    return [*shown, card]


def fit(found: Fit, *, vram_gb: float, cores: int, pool: str | None) -> Figures:
    plain = {
        "agents": found.agents,
        "tasks": found.tasks,
        "fits": found.agents > 0,
        "min_vram_gb": vram_gb,
        "min_cores": cores,
        "fragmentation": round(found.fragmentation, 4),
    }
    return Figures(
        label=wants(vram_gb, cores, pool),
        message=f"{whole(found.agents)} {'agent fits' if found.agents == 1 else 'agents fit'}",
        colour=badges.GOOD if found.agents > 1 else badges.SHORT if found.agents else badges.NONE,
        plain=plain,
        rows=[plain],
    )


def pools(rows: Iterable[PoolTotals], beyond: Iterable[PoolTotals] = ()) -> Figures:
    """Args: beyond: what pools that are not listed add up to; it counts in the sums."""
    by_name: dict[str, dict[str, Any]] = {}
    for row in rows:
        pool = by_name.setdefault(row.pool_name, {"pool": row.pool_name, **dict.fromkeys(_SUMMED, 0)})
        for name, value in zip(_SUMMED, _summed(row), strict=True):
            pool[name] += value
    largest = sorted(by_name.values(), key=lambda pool: (-pool["vram_total_gb"], -pool["online"], pool["pool"]))
    others = tuple(beyond)
    free = sum(pool["vram_free_gb"] for pool in largest) + sum(row.gpu_vram_available_gb for row in others)
    total = sum(pool["vram_total_gb"] for pool in largest) + sum(row.gpu_vram_total_gb for row in others)
    shown = [
        Bar(pool["pool"], pool["vram_free_gb"], pool["vram_total_gb"], f"{gigabytes(pool['vram_free_gb'])} free")
        for pool in largest[:_SHOWN_POOLS]
    ]
    return Figures(
        label="free VRAM",
        message=f"{gigabytes(free)} of {gigabytes(total)}",
        plain={"vram_free_gb": free, "vram_total_gb": total, "pools": largest},
        rows=largest,
        picture=lambda: badges.bars("Free VRAM by pool", shown),
    )


_SUMMED: Final = (
    "placeable",
    "online",
    "busy",
    "offline",
    "vram_free_gb",
    "vram_total_gb",
    "cores_free",
    "cores_total",
)


def _summed(row: PoolTotals) -> tuple[float, ...]:
    return (
        row.placeable,
        row.online,
        row.busy,
        row.offline,
        row.gpu_vram_available_gb,
        row.gpu_vram_total_gb,
        row.cpu_cores_available,
        row.cpu_cores_physical,
    )


def fleet(rows: Iterable[PoolTotals]) -> Figures:
    sums = dict.fromkeys((*_SUMMED, "cordoned"), 0.0)
    for row in rows:
        for name, value in zip((*_SUMMED, "cordoned"), (*_summed(row), row.cordoned), strict=True):
            sums[name] += value
    agents = sums["online"] + sums["busy"] + sums["offline"]
    plain = {
        "agents": int(agents),
        **{name: value if name.endswith("_gb") else int(value) for name, value in sums.items()},
    }
    return Figures(
        label="fleet",
        message=f"{whole(sums['placeable'])} of {whole(agents)} placeable",
        colour=badges.GOOD if sums["placeable"] else badges.NONE,
        plain=plain,
        rows=[plain],
    )


def trend(points: Sequence[TrendPoint], pool: str | None) -> Figures:
    rows = [
        {
            "time": datetime.fromtimestamp(point.at_ms / 1000, UTC).isoformat(),
            "vram_free_gb": point.gpu_vram_available_gb,
            "vram_total_gb": point.gpu_vram_total_gb,
            "cores_free": point.cpu_cores_available,
            "placeable": point.placeable,
            "online": point.online,
        }
        for point in points
    ]
    now = gigabytes(points[-1].gpu_vram_available_gb) if points else "nothing yet"
    title = f"Free VRAM in {pool}" if pool else "Free VRAM"
    line = [(float(point.at_ms), point.gpu_vram_available_gb) for point in points]
    return Figures(
        label=f"free VRAM in {pool}" if pool else "free VRAM",
        message=now,
        colour=badges.GOOD if points else badges.UNKNOWN,
        plain={"now": rows[-1] if rows else None, "points": rows},
        rows=rows,
        picture=lambda: badges.line(f"{title}, 24 h", line, now),
    )


def agent(capacity: AgentCapacity, hostname: str) -> Figures:
    name = hostname or capacity.agent_id
    plain = {
        "agent_id": capacity.agent_id,
        "name": name,
        "status": capacity.status.value,
        "vram_free_gb": capacity.gpu_vram_available_gb,
        "vram_total_gb": capacity.gpu_vram_total_gb,
        "cores_free": capacity.cpu_cores_available,
        "cores_total": capacity.cpu_cores_physical,
        "memory_free_gb": capacity.memory_available_gb,
        "cpu_percent": capacity.cpu_percent,
        "last_heartbeat_at": capacity.timestamp.isoformat(),
    }
    online = capacity.status is AgentStatus.ONLINE
    message = f"{tenths(capacity.gpu_vram_available_gb)} GB, {capacity.cpu_cores_available} cores free"
    return Figures(
        label=name,
        message=message if online else capacity.status.value,
        colour=badges.GOOD
        if online
        else badges.UNKNOWN
        if capacity.status is AgentStatus.OFFLINE
        else badges.SHORT,
        plain=plain,
        rows=[plain],
    )
