"""What a person sees of a simulated fleet: a bar at a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from workers.simulate.fleet import Fleet
from workers.simulate.sending import Delivery

_LINE_EVERY_S: Final = 60.0
_REDRAW_EVERY_S: Final = 0.25
_RATE_OVER_S: Final = 10.0


class Progress:
    """Shows the first round as a bar that fills up, later the agents that report and the rate."""

    def __init__(self, console: Console, fleet: Fleet, delivery: Delivery, *, live: bool) -> None:
        self._console = console
        self._live = live
        self._fleet = fleet
        self._delivery = delivery
        self._bar: Bar | None = None
        self._task = TaskID(0)
        self._begun = self._drawn = self._line_due = time.monotonic()
        self._line_due += _LINE_EVERY_S
        self._rate_since = (self._begun, 0)
        self._rate = 0.0
        self._complete = False
        self._waiting_for = ""

    def __enter__(self) -> Self:
        if self._live:
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}", style="dim"),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task("first heartbeats", total=len(self._fleet.machines), note="")
            self._bar.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def all_reported(self) -> None:
        """The first round is over."""
        self._complete = True
        seconds = time.monotonic() - self._begun
        self._say(f"{self._delivery.accepted:,} simulated agents reported within {seconds:.1f} s")
        self._refresh()

    def update(self) -> None:
        """Something was delivered or refused."""
        now = time.monotonic()
        if now - self._drawn < _REDRAW_EVERY_S:
            return
        self._drawn = now
        since, accepted = self._rate_since
        if now - since >= 1.0:
            self._rate = (self._delivery.accepted - accepted) / (now - since)
        if now - since >= _RATE_OVER_S:
            self._rate_since = (now, self._delivery.accepted)
        self._refresh()
        if self._bar is None and now >= self._line_due:
            self._line_due = now + _LINE_EVERY_S
            self._say(f"{self._reporting():,} agents report: {self._note()}")

    def deferred(self, reason: str) -> None:
        """The server took nothing. Said once for each reason, not once for each batch."""
        if reason != self._waiting_for:
            self._waiting_for = reason
            self._say(f"the server takes no heartbeats now ({reason}); keeping the newest and trying again")

    def taken(self) -> None:
        if self._waiting_for:
            self._waiting_for = ""
            self._say("the server takes heartbeats again")

    def end(self, seconds: float, p50_ms: float, p99_ms: float) -> None:
        sent = self._delivery
        self._say(
            f"{len(self._fleet.machines):,} agents, {seconds:.1f} s: {sent.accepted:,} heartbeats accepted "
            f"({sent.accepted / max(seconds, 0.001):,.1f}/s), {sent.rejected:,} rejected, "
            f"{sent.deferred:,} deferred; a batch took {p50_ms:.1f} ms (p50), {p99_ms:.1f} ms (p99)"
        )
        for refusal, times in sent.refusals.most_common():
            self._say(f"refused: {refusal}, {times} times")

    def _reporting(self) -> int:
        return len(self._fleet.machines) - self._fleet.away

    def _note(self) -> str:
        sent = self._delivery
        return (
            f"{self._rate:,.1f} heartbeats/s, {sent.accepted:,} accepted, {sent.rejected:,} rejected, "
            f"{sent.deferred:,} deferred, {self._fleet.away:,} away"
        )

    def _refresh(self) -> None:
        if self._bar is None:
            return
        if self._complete:
            self._bar.update(
                self._task, description="agents reporting", completed=self._reporting(), note=self._note()
            )
        else:
            self._bar.update(self._task, completed=self._delivery.accepted)

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, highlight=False)
