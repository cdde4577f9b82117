"""An entry of the log as both consumer groups see it."""

from __future__ import annotations

import msgspec

from app.models.heartbeat import Heartbeat
from app.models.identity import StreamId
from app.models.transition import Transition


class LogEntry(msgspec.Struct, frozen=True):
    """`body` is None for an entry that cannot be decoded; `fault` then says why (it is dead-lettered).

    A `lost` one was trimmed before this group had processed it: there is nothing left to look at.
    """

    stream_id: StreamId
    body: Heartbeat | Transition | None
    fault: str = ""
    lost: bool = False


class Gap(msgspec.Struct, frozen=True):
    """Entries that were trimmed before a group had read them, from the first to the last that may be missing."""

    first: StreamId
    last: StreamId
    entries: int
