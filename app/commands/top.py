"""`headroom top`: the fleet live in a terminal; sort, filter, cordon."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import Any, ClassVar, Final

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Input, Sparkline, Static

from app.commands.api import Api, agent_path
from app.errors import HeadroomError

_EVERY_S: Final = 2.0
_KEPT_POINTS: Final = 120

COLUMNS: Final = ("host", "status", "pool", "VRAM", "of", "cores", "load", "age", "agent")
"""Titles in the order of the table; a key of their first letter sorts by some of them."""


class Reason(ModalScreen[str | None]):
    """Asks why an agent is cordoned."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Cancel")]
    CSS = "Reason { align: center middle; } Reason Input { width: 60%; }"

    def compose(self) -> ComposeResult:
        yield Input(placeholder="Why? Enter cordons, Escape leaves it", id="reason")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.dismiss(event.value.strip() or None)


class Top(App[None]):
    """All agents of the record, refreshed every 2 s.

    Args:
        api: where to ask.
        actor: who cordons.
        every_s: the pause between two looks.
    """

    TITLE = "headroom top"
    CSS = """
    #head { height: 3; }
    #totals { width: 1fr; padding: 0 1; }
    #free { width: 40%; height: 3; }
    #filter { display: none; height: 3; }
    DataTable { height: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("v", "sort('VRAM')", "VRAM"),
        Binding("n", "sort('cores')", "Cores"),
        Binding("l", "sort('load')", "Load"),
        Binding("p", "sort('pool')", "Pool"),
        Binding("s", "sort('status')", "Status"),
        Binding("h", "sort('host')", "Host", show=False),
        Binding("slash", "filter", "Filter"),
        Binding("c", "cordon", "Cordon"),
        Binding("q", "quit", "Quit"),
    ]

    def __init__(self, api: Api, *, actor: str, every_s: float = _EVERY_S) -> None:
        super().__init__()
        self._api = api
        self._actor = actor
        self._every_s = every_s
        self._agents: list[dict[str, Any]] = []
        self._sort = "VRAM"
        self._wanted = ""
        self._free: list[float] = []
        self._trouble = ""

    def compose(self) -> ComposeResult:
        with Horizontal(id="head"):
            yield Static(id="totals")
            yield Sparkline([], id="free")
        yield Input(placeholder="host, pool, status or id", id="filter")
        yield DataTable(cursor_type="row", zebra_stripes=True)
        yield Footer()

    async def on_mount(self) -> None:
        table = self.query_one(DataTable)
        for title in COLUMNS:
            table.add_column(title, key=title)
        table.focus()
        self.run_worker(self._keep_looking(), exclusive=True)

    async def _keep_looking(self) -> None:
        while True:
            await self._look()
            await asyncio.sleep(self._every_s)

    async def _look(self) -> None:
        try:
            self._agents = await asyncio.to_thread(lambda: list(self._api.pages("/api/v1/agents", limit=1000)))
            self._trouble = ""
        except HeadroomError as error:
            # The last picture stays, and says how old it is.
            self._trouble = error.detail
        self._show()

    def _show(self) -> None:
        rows = sorted(map(_row, self._agents), key=lambda row: _order(row, self._sort))
        shown = [row for row in rows if self._wanted in " ".join(map(str, row.values())).lower()]
        online = [row for row in rows if row["status"] == "online"]
        free = sum(row["VRAM"] for row in online)
        if not self._trouble:
            self._free = [*self._free, free][-_KEPT_POINTS:]
        self.query_one(Sparkline).data = self._free
        totals = (
            f"{len(shown)} of {len(rows)} agents, {len(online)} online\n{free:,.0f} GB free VRAM, "
            f"{sum(row['cores'] for row in online):,} free cores, by {self._sort}  "
        )
        self.query_one("#totals", Static).update(Text.assemble(totals, (self._trouble, "red")))
        self._fill(shown)

    def _fill(self, shown: list[dict[str, Any]]) -> None:
        table = self.query_one(DataTable)
        place = table.cursor_row
        table.clear()
        for row in shown:
            table.add_row(*(_text(row[title]) for title in COLUMNS), key=row["agent"])
        if shown:
            table.move_cursor(row=min(place, len(shown) - 1), animate=False)

    def action_sort(self, column: str) -> None:
        self._sort = column
        self._show()

    def action_filter(self) -> None:
        field = self.query_one("#filter", Input)
        field.display = True
        field.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        if event.input.id == "filter":
            self._wanted = event.value.strip().lower()
            self._show()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if event.input.id == "filter":
            event.input.display = bool(event.value)
            self.query_one(DataTable).focus()

    def action_cordon(self) -> None:
        table = self.query_one(DataTable)
        if not table.row_count:
            return
        agent_id = str(table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value)
        agent = next(one for one in self._agents if one["agent_id"] == agent_id)
        if agent.get("cordon"):
            self.run_worker(self._change(agent_id, None))
        else:
            self.push_screen(Reason(), lambda reason: self._cordon(agent_id, reason))

    def _cordon(self, agent_id: str, reason: str | None) -> None:
        if reason is not None:
            self.run_worker(self._change(agent_id, {"reason": reason, "actor": self._actor}))

    async def _change(self, agent_id: str, cordon: dict[str, Any] | None) -> None:
        try:
            await asyncio.to_thread(self._api.patch, agent_path(agent_id), {"cordon": cordon})
        except HeadroomError as error:
            self.notify(error.detail, severity="error")
        await self._look()


def top(url: str, *, actor: str) -> int:
    with Api(url) as api:
        Top(api, actor=actor).run()
    return 0


def _row(agent: dict[str, Any]) -> dict[str, Any]:
    metrics = agent.get("resource_metrics") or {}
    status = f"{agent['status']}, cordoned" if agent.get("cordon") else agent["status"]
    seen = datetime.fromisoformat(agent["last_heartbeat_at"]).timestamp()
    return {
        "host": agent["hostname"] or agent["agent_id"][:8],
        "status": status,
        "pool": agent["pool_name"],
        "VRAM": float(metrics.get("gpu_vram_available_gb") or 0.0),
        "of": float(metrics.get("gpu_vram_total_gb") or 0.0),
        "cores": int(metrics.get("cpu_cores_available") or 0),
        "load": float(metrics.get("cpu_load_1min") or 0.0),
        "age": f"{max(0.0, time.time() - seen):.0f} s",
        "agent": agent["agent_id"],
    }


def _order(row: dict[str, Any], column: str) -> tuple[Any, ...]:
    value = row[column]
    return (-value if isinstance(value, int | float) else value, row["agent"])


def _text(value: Any) -> Text:
    """Not markup: a host may be called anything."""
    return Text(f"{value:.1f}" if isinstance(value, float) else str(value))
