"""`headroom find`: the planner's question for people and scripts."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import msgspec
from rich.console import Group
from rich.live import Live
from rich.text import Text

from app.client import CapacityClient
from app.commands.api import NOTHING, Api, console, naming, print_json, table_of
from app.commands.explain import explanation

if TYPE_CHECKING:
    from rich.console import RenderableType

    from app.models.capacity import CapacityQuery

_COLUMNS: Final = {
    "agent_id": "agent",
    "gpu_vram_available_gb": "VRAM GB",
    "cpu_cores_available": "cores",
    "cpu_load_1min": "load",
    "pool_name": "pool",
    "age_s": "age s",
}
_WATCH_EVERY_S: Final = 1.0


def find(url: str, query: CapacityQuery, *, as_json: bool, watch: bool, explain: bool) -> int:
    """Prints who fits; returns 0, or NOTHING when nobody does."""
    with naming(url), CapacityClient(url, timeout_s=5.0) as client:
        if watch:
            return _watch(client, query)
        rows = _rows(client, query)
        if as_json:
            for row in rows:
                print_json(row)
        elif rows:
            console().print(table_of(rows, _COLUMNS))
        else:
            console().print("Nothing has that much free.")
    if explain and not as_json:
        with Api(url) as api:
            console().print(explanation(api.get("/api/v1/capacity/explain", **search_parameters(query))))
    return 0 if rows else NOTHING


def search_parameters(query: CapacityQuery) -> dict[str, Any]:
    """What of a query the capacity endpoints take as parameters."""
    named = msgspec.structs.asdict(query)
    return {
        name: named[name]
        for name in ("min_gpu_vram_gb", "min_cpu_cores", "agent_type", "pool_name", "gpu_type")
        if named[name] is not None
    } | ({"min_memory_gb": query.min_memory_gb} if query.min_memory_gb else {})


def _rows(client: CapacityClient, query: CapacityQuery) -> list[dict[str, Any]]:
    now = time.time()
    return [
        {
            **msgspec.to_builtins(row),
            "age_s": round(max(0.0, now - row.last_heartbeat_at.timestamp()), 1),
        }
        for row in client.search(query).agents
    ]


def _watch(client: CapacityClient, query: CapacityQuery) -> int:
    """Shows the answer as it changes, until Ctrl-C."""
    screen = console()

    def frame() -> RenderableType:
        rows = _rows(client, query)
        shown = rows[: max(1, screen.height - 4)]
        note = f"{len(rows)} fit" + (f", the first {len(shown)} are shown" if len(shown) < len(rows) else "")
        head = Text(f"{note}  ·  {time.strftime('%H:%M:%S')}  ·  Ctrl-C ends", style="dim")
        return Group(head, table_of(shown, _COLUMNS) if shown else Text("Nothing has that much free."))

    with Live(frame(), console=screen, screen=screen.is_terminal, auto_refresh=False) as live:
        while True:
            time.sleep(_WATCH_EVERY_S)
            live.update(frame(), refresh=True)
