"""An entry of the log as both consumer groups see it."""

from __future__ import annotations

import msgspec

from app.models.heartbeat import Heartbeat
from app.models.identity import StreamId
from app.models.transition import Transition


class LogEntry(msgspec.Struct, frozen=True):
    """`body` is None for an entry that cannot be decoded; `fault` then says why (it is dead-lettered)."""

    stream_id: StreamId
    body: Heartbeat | Transition | None
    fault: str = ""


class Gap(msgspec.Struct, frozen=True):
    """Entries that were trimmed before a group had processed them, none of them before `first` or after `last`."""

    first: StreamId
    last: StreamId
    entries: int
