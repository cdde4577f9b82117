"""A change of an agent's status, written to the log by the same script that changes the sets."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from app.models.cordon import Cordon
from app.models.identity import AgentId, StreamId


class TransitionKind(StrEnum):
    ONLINE = "online"
    BUSY = "busy"
    OFFLINE = "offline"
    FORGOTTEN = "forgotten"
    CORDONED = "cordoned"
    UNCORDONED = "uncordoned"


class Reason(StrEnum):
    """Why: the agent said so, it fell silent, an operator asked for it, or a cordon's time was up."""

    HEARTBEAT = "heartbeat"
    SILENT = "silent"
    OPERATOR = "operator"
    EXPIRED = "expired"


class Transition(msgspec.Struct, frozen=True, kw_only=True):
    """One change.

    Attributes:
        position: the agent's last applied heartbeat when its status changed; the entry's own id for everything
            else. The record orders by it: a heartbeat with a greater id supersedes the status set here.
        at_ms: when it happened, by Redis's clock.
        flapping: whether the agent changes its status so often that its events are kept as one.
        cordon: with `cordoned` alone.
    """

    agent_id: AgentId
    kind: TransitionKind
    reason: Reason
    position: StreamId
    at_ms: int
    flapping: bool = False
    cordon: Cordon | None = None
