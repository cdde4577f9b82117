"""How stream, workers and index stand, for operators."""

from __future__ import annotations

from datetime import datetime

import msgspec


class GroupHealth(msgspec.Struct, frozen=True, kw_only=True):
    """One consumer group of the log.

    Attributes:
        workers: that have read from it lately.
        backlog_entries: not yet processed by it.
        backlog_age_s: how long the oldest of these has waited; 0.0 without any.
    """

    group: str
    workers: int
    backlog_entries: int
    backlog_age_s: float


class IndexHealth(msgspec.Struct, frozen=True, kw_only=True):
    """What Redis says about the log and the index.

    Attributes:
        epoch_opened_at: since when lookups trust the index; None while it is being rebuilt.
        grace_s: for how long nobody will be declared offline.
        reporting: agents that are not silent; `silent` ones are out of the searches, `offline` ones declared.
        reaper: whether one holds the lease.
        receivers: API processes that take heartbeats.
        log_entries: that the stream holds, processed or not.
        dead_letters: entries set aside because nothing could be made of them.
        memory_bytes: that Redis uses for everything in it.
    """

    epoch_opened_at: datetime | None
    grace_s: float
    reporting: int
    silent: int
    offline: int
    cordoned: int
    flapping: int
    cloned: int
    reaper: bool
    receivers: int
    log_entries: int
    dead_letters: int
    memory_bytes: int
    groups: tuple[GroupHealth, ...]
