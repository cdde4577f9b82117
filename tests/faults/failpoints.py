"""Named failpoints: places in a worker where a test may stop it, to kill it there or to let it go on late.

Nothing of this is in production code: a test-only process (`tests.faults.nursery`) wraps the calls between which
the points lie before it hands over to `headroom`.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

from app.index.stream import GroupReader
from app.index.upkeep import Upkeep
from app.record.writer import Writer


class _Point(NamedTuple):
    owner: type
    method: str
    before: bool = False


POINTS: Final = {
    "read": _Point(GroupReader, "read"),
    "applied": _Point(Upkeep, "apply"),
    "committed": _Point(Writer, "write"),
    "restoring": _Point(Upkeep, "restore", before=True),
    "swept": _Point(Upkeep, "sweep"),
}
"""After a worker has read entries; after the ingest has applied, the recorder committed, the reaper taken silent
agents out; before the rebuild restores a page that it has read. Calls that had nothing to do do not count."""


def arm(name: str) -> None:
    """Makes this process stop itself (SIGSTOP) once, the first time it comes by the point with work in hand."""
    point = POINTS[name]
    original: Callable[..., Awaitable[Any]] = getattr(point.owner, point.method)
    passed = False

    def pass_by(work: Any) -> None:
        nonlocal passed
        if work and not passed:
            passed = True
            os.kill(os.getpid(), signal.SIGSTOP)

    @functools.wraps(original)
    async def wrapped(self: object, *arguments: Any, **named: Any) -> Any:
        if point.before:
            pass_by(arguments)
            return await original(self, *arguments, **named)
        result = await original(self, *arguments, **named)
        # What was written says nothing by itself about whether there was anything to write.
        pass_by(arguments[0] if arguments else result)
        return result

    setattr(point.owner, point.method, wrapped)
