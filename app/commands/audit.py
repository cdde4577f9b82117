"""`headroom audit`: what differs between index, hashes and record."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from app.index.opening import open_index
from app.record import open_record
from workers.audit import Audit

if TYPE_CHECKING:
    from app.models.finding import Finding
    from app.settings import Settings

_STEPS = {
    "sets": "Agents against the sorted sets",
    "totals": "Adding up the totals",
    "record": "Index against record",
    "repair": "Putting right",
}


async def audit(settings: Settings, *, repair: bool, as_json: bool) -> int:
    """Prints the findings; the exit status: 0 for none (or all put right), 1 for some.

    Raises:
        UnavailableError: Redis or the record is away.
    """
    findings: list[Finding] = []
    async with AsyncExitStack() as stores:
        index = open_index(settings, purpose="audit")
        stores.push_async_callback(index.close)
        record = open_record(settings)
        stores.push_async_callback(record.close)
        console = Console(stderr=True)
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TextColumn("{task.completed:,.0f} agents"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        ) as bar:
            tasks = {}

            def progress(step: str, agents: int) -> None:
                if step not in tasks:
                    tasks[step] = bar.add_task(_STEPS[step], total=None)
                bar.advance(tasks[step], agents)

            async for finding in Audit(index, record, progress=progress).run(repair=repair):
                findings.append(finding)
                if as_json:
                    sys.stdout.write(msgspec.json.encode(finding).decode() + "\n")
    if not as_json:
        _print(findings, repair=repair)
    return 1 if any(not finding.repaired for finding in findings) else 0


def _print(findings: list[Finding], *, repair: bool) -> None:
    console = Console()
    if not findings:
        console.print("Index, hashes and record agree.")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("where", "subject", "what"):
        table.add_column(title, overflow="fold")
    for finding in findings:
        table.add_row(finding.where, escape(finding.subject), escape(finding.what))
    console.print(table)
    left = sum(not finding.repaired for finding in findings)
    if not repair:
        done = f"{_differences(left)} found; `headroom audit --repair` puts it right"
    elif left:
        done = f"{_differences(len(findings) - left)} put right; {_differences(left)} could not be"
    else:
        done = f"{_differences(len(findings))} put right"
    console.print(f"{done}.", highlight=False)


def _differences(number: int) -> str:
    return "1 difference" if number == 1 else f"{number} differences"
