"""The rows: what is broken, and what must happen then. Rows 6, 16 and 42 to 46 are kept for claims."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

KEPT_FOR_CLAIMS: Final = frozenset({6, 16, *range(42, 47)})


class FaultRow(NamedTuple):
    fault: str
    promise: str


ROWS: Final = {
    1: FaultRow("ingest dies between reading and applying", "another takes its entries over"),
    2: FaultRow("ingest dies between applying and acknowledging", "the second application changes nothing"),
    3: FaultRow("recorder dies between commit and acknowledging", "the second write changes nothing"),
    4: FaultRow("a worker sleeps past the takeover time", "its late write changes nothing"),
    5: FaultRow("`FLUSHALL`", "the index is rebuilt from the record; lookups come from there meanwhile"),
    7: FaultRow(
        "a rebuild meets fresher heartbeats", "the fresher heartbeat stays, cordons are restored in any case"
    ),
    8: FaultRow("Redis comes back with nothing", "as after `FLUSHALL`; 503 for heartbeats meanwhile"),
    9: FaultRow("Redis loses the tail of its append-only file", "only the tail is lost; next heartbeats heal it"),
    10: FaultRow("Redis is loading", "503 with `Retry-After`, no storm of retries; lookups from the record"),
    11: FaultRow("Redis has no memory left", "503, nothing dropped in silence; normal once there is room"),
    12: FaultRow("a store that cannot be worked with", "refused at the start, with what to do"),
    13: FaultRow("Redis is busy with a script", "503; normal afterwards"),
    14: FaultRow("Redis has lost its scripts", "loaded again, the call repeated"),
    15: FaultRow("Redis is no primary", "503; the primary is found again"),
    17: FaultRow("the stream is trimmed under a group", "losses counted; record and index brought together again"),
    18: FaultRow("Redis's reply is lost", "exactly one effect"),
    19: FaultRow("Redis hangs", "every answer within 2 s"),
    20: FaultRow("a request ends in the middle of a command", "no reply crosses to another, no connection leaks"),
    21: FaultRow("no connection to Redis is left", "503, no deadlock"),
    22: FaultRow("Postgres is down for ten minutes", "heartbeats and lookups go on; nothing differs afterwards"),
    23: FaultRow("Postgres restarts", "the batch is tried again"),
    24: FaultRow("a backend of Postgres hangs", "the statement times out and is tried again"),
    25: FaultRow("deadlocks, serialization failures", "the batch is tried again, five times in a row at most"),
    26: FaultRow("no connection to Postgres is left", "503 after a bounded wait; heartbeats and lookups go on"),
    27: FaultRow("the reply to a COMMIT is lost", "the second write changes nothing"),
    28: FaultRow("a disk is full", "recording pauses with an alarm, the index is kept; it resumes"),
    29: FaultRow("an entry that nobody can process", "put aside as a dead letter; the rest goes on"),
    30: FaultRow("one agent many times in a batch", "the newest is kept"),
    31: FaultRow("heartbeats come twice, late, or again", "ignored and counted"),
    32: FaultRow("an agent restarts", "the new boot counts, the old one never again"),
    33: FaultRow("two machines under one id", "both are told; no flip-flop"),
    34: FaultRow("an agent's clock is a day off", "no effect on liveness; measured"),
    35: FaultRow("Redis's clock is set", "nobody offline for it, nobody alive for it"),
    36: FaultRow(
        "an agent that changes its status all the time",
        "marked from the fourth change in ten minutes, its events folded; searches as ever",
    ),
    37: FaultRow("the whole fleet reports at once", "429 past a bound, answers spread it out; nobody offline"),
    38: FaultRow(
        "nobody takes heartbeats in; most of a fleet is silent", "grace; brake; searches lose the silent"
    ),
    39: FaultRow("the reaper meets a fresh heartbeat", "the heartbeat wins"),
    40: FaultRow("two reapers", "one transition per agent and outage"),
    41: FaultRow("no reaper", "a silent agent is no answer all the same"),
    47: FaultRow("the API ends under load", "acknowledged heartbeats survive; the end is bounded"),
    48: FaultRow("a listener to events never reads", "cut off; nobody else notices"),
    49: FaultRow(
        "a group is slower than the fleet",
        "index: 429, an alarm, nobody offline; record: trimmed past, reconciled",
    ),
}

_NAME: Final = re.compile(r"test_row_(\d\d)_\w+")


def row_of(test: str) -> int | None:
    """The row that a test is about, by its name; None for a test of no single row."""
    found = _NAME.match(test)
    return int(found[1]) if found else None
