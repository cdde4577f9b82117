"""`headroom show`, `headroom pools`, `headroom events`: what there is, and what happens to it."""

from __future__ import annotations

from typing import Any, Final

from rich.markup import escape
from rich.table import Table

from app.commands.api import NOTHING, Api, agent_path, console, print_json, table_of

_POOLS: Final = {
    "agent_type": "type",
    "pool_name": "pool",
    "gpu_type": "GPU",
    "online": "online",
    "busy": "busy",
    "offline": "offline",
    "cordoned": "cordoned",
    "gpu_vram_available_gb": "free GB",
    "gpu_vram_total_gb": "of GB",
    "cpu_cores_available": "free cores",
    "cpu_cores_physical": "of cores",
}
_EVENTS: Final = ("at", "from_status", "to_status", "reason")


def show(url: str, agent_id: str, *, as_json: bool) -> int:
    """One agent: what it has free, who it is, its cordon and its latest transitions."""
    with Api(url) as api:
        capacity = api.get(agent_path(agent_id, "capacity"))
        details = api.get(agent_path(agent_id))
        history = api.get(agent_path(agent_id, "history"), limit=5)
    if as_json:
        print_json({**details, "capacity": capacity, "events": history["events"]})
        return 0
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="dim")
    facts.add_column()
    for title, value in _facts(capacity, details):
        facts.add_row(title, escape(value))
    screen = console()
    screen.print(facts)
    if history["events"]:
        screen.print()
        screen.print(table_of(history["events"], {name: name.replace("_", " ") for name in _EVENTS}))
    return 0


def _facts(capacity: dict[str, Any], details: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [
        ("agent", details["agent_id"]),
        ("host", details["hostname"] or "unnamed"),
        ("type, pool", f"{details['agent_type']}, {details['pool_name']}"),
        ("status", capacity["status"]),
        ("last heartbeat", capacity["timestamp"]),
        (
            "VRAM",
            f"{capacity['gpu_vram_available_gb']} of {capacity['gpu_vram_total_gb']} GB free on the best GPU",
        ),
        ("GPU type", capacity["gpu_type"]),
        ("cores", f"{capacity['cpu_cores_available']} of {capacity['cpu_cores_physical']} free"),
        ("load", f"{capacity['cpu_load_1min']} (1 min), {capacity['cpu_load_5min']} (5 min)"),
        ("memory", f"{capacity['memory_available_gb']} GB free, {capacity['memory_percent']} % used"),
    ]
    for gpu in details.get("gpus") or []:
        free = f"{gpu['vram_available_gb']} of {gpu['vram_total_gb']} GB free"
        facts.append((f"GPU {gpu['index']}", f"{gpu['name'] or gpu['uuid']}, {free}"))
    cordon = details.get("cordon")
    if cordon:
        until = f" until {cordon['expires_at']}" if cordon.get("expires_at") else ""
        facts.append(("cordoned", f"by {cordon['actor']}{until}: {cordon['reason']}"))
    return facts


def pools(url: str, *, agent_type: str | None, as_json: bool) -> int:
    """Totals by pool and GPU type; returns NOTHING for an empty fleet."""
    with Api(url) as api:
        rows = list(api.pages("/api/v1/capacity/summary", agent_type=agent_type))
    if as_json:
        for row in rows:
            print_json(row)
    elif rows:
        console().print(table_of(rows, _POOLS))
    else:
        console().print("No agent has reported yet.")
    return 0 if rows else NOTHING


def events(
    url: str, *, agent_type: str | None, pool_name: str | None, kinds: str | None, after: str | None, as_json: bool
) -> int:
    """Prints changes as they happen, until Ctrl-C."""
    screen = console()
    with Api(url) as api:
        for event in api.events(agent_type=agent_type, pool_name=pool_name, kinds=kinds, after=after):
            if as_json:
                print_json(event)
            else:
                screen.print(_event_line(event), highlight=False, markup=False)
    return 0


def _event_line(event: dict[str, Any]) -> str:
    if not event.get("agent_id"):
        return f"{event['version']}  {event['kind']}"
    figures = f"{event['gpu_vram_available_gb']} GB, {event['cpu_cores_available']} cores"
    free = figures if event["placeable"] else "not placeable"
    return f"{event['version']}  {event['kind']:<9} {event['agent_id']}  {event['status']}, {free}"
