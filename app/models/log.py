"""An entry of the log as both consumer groups see it."""

from __future__ import annotations

import msgspec

from app.models.agent import IndexedState
from app.models.heartbeat import Heartbeat
from app.models.identity import StreamId
from app.models.transition import Transition


class LogEntry(msgspec.Struct, frozen=True):
    """`body` is None for an entry that cannot be decoded; `fault` then says why (it is dead-lettered).

    An `IndexedState` stands in no log: it takes the place of entries that are lost.
    """

    stream_id: StreamId
    body: Heartbeat | Transition | IndexedState | None
    fault: str = ""


class Gap(msgspec.Struct, frozen=True):
    """Entries that were trimmed before a group had processed them, none of them before `first` or after `last`."""

    first: StreamId
    last: StreamId
    entries: int
