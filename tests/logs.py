"""Builds log entries for tests of the record; times are seconds after START_MS."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from app.models.cordon import Cordon
from app.models.heartbeat import Heartbeat
from app.models.identity import StreamId
from app.models.log import LogEntry
from app.models.transition import Reason, Transition, TransitionKind
from tests.indexing import agent_id

START_MS = 1_800_000_000_000


def stream_id(at_s: float, n: int = 0) -> StreamId:
    return StreamId(START_MS + round(at_s * 1000), n)


def moment(at_s: float) -> datetime:
    return datetime.fromtimestamp(START_MS / 1000, UTC) + timedelta(seconds=at_s)


def beat(at_s: float, heartbeat: Heartbeat, *, n: int = 0) -> LogEntry:
    return LogEntry(stream_id(at_s, n), heartbeat)


def change(
    at_s: float,
    number: int,
    kind: TransitionKind,
    *,
    position: StreamId | None = None,
    reason: Reason = Reason.HEARTBEAT,
    n: int = 1,
    flapping: bool = False,
    cordon: Cordon | None = None,
) -> LogEntry:
    """A transition of the numbered agent; `position` None: its own entry, as `forgotten` has it."""
    here = stream_id(at_s, n)
    return LogEntry(
        here,
        Transition(
            agent_id=agent_id(number),
            kind=kind,
            reason=reason,
            position=position or here,
            at_ms=here.ms,
            flapping=flapping,
            cordon=cordon,
        ),
    )


def silence(at_s: float, number: int, *, after_s: float, n: int = 1) -> LogEntry:
    """The reaper's word that nothing was heard since the heartbeat at `after_s`."""
    return change(at_s, number, TransitionKind.OFFLINE, position=stream_id(after_s), reason=Reason.SILENT, n=n)
