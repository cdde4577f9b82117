"""The common search without a script: native commands in one round trip, for a third of a script's time.

It answers only what these commands answer exactly, and says so when it cannot: then find.lua does. docs/decisions,
"Planners read the index themselves", has the figures.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import msgspec
from redis.exceptions import ResponseError

from app.index.keys import Keys
from app.index.lookup import SLICE
from app.index.packing import Repeated
from app.index.placement import Document, decode_document, row_of
from app.index.scripts import Argument
from app.models.capacity import CapacityPage, CapacityQuery
from app.models.identity import AgentId
from app.models.ladder import covering

_MOST_SETS: Final = 3
"""Each set gives a full page of rows to choose from; with more sets than this, the script is faster."""

_BEGIN: Final = ("MULTI",)
_END: Final = ("EXEC",)

Batch = list[tuple[Argument, ...]]


def commands(keys: Keys, query: CapacityQuery, *, with_total: bool = False) -> Batch | None:
    """What to send, or None for a search that is not common: many sets, a filter, a large limit."""
    if not query.counted or query.after is not None or query.limit >= SLICE:
        return None
    counted_from = repr(query.min_gpu_vram_gb) if with_total else None
    return _commands(
        keys, query.agent_type, query.pool_name, query.min_cpu_cores, query.limit, counted_from=counted_from
    )


# Planners ask the same few questions over and over.
@lru_cache(maxsize=1_000)
def _commands(
    keys: Keys, agent_type: str, pool_name: str | None, min_cpu_cores: int, limit: int, *, counted_from: str | None
) -> Repeated | None:
    names = covering(min_cpu_cores)
    if len(names) > _MOST_SETS:
        return None
    agents = keys.agent("*")
    sets = [keys.vram_by_cores(agent_type, name, pool_name) for name in names]
    batch: Batch = [
        # A set in descending order, by rank. One row more than wanted tells whether there is more.
        ("SORT_RO", key, "BY", "nosort", "DESC",
         "LIMIT", 0, limit + 1, "GET", "#", "GET", f"{agents}->seen", "GET", f"{agents}->document")
        for key in sets
    ]  # fmt: skip
    if counted_from is not None:
        batch += [("ZCOUNT", key, counted_from, "+inf") for key in sets]
    # The epoch last: if it is still the trusted one, what was read before it was whole.
    batch += [("MGET", keys.epoch, keys.offline_after), ("TIME",)]
    # An agent must not move from one set to another in between. Alone, a command is atomic by itself.
    return Repeated(batch if len(sets) == 1 else [_BEGIN, *batch, _END])


def read(query: CapacityQuery, replies: list[Any], *, epoch: str, now_ms: int | None) -> CapacityPage | None:
    """The answer, or None where a closer look is needed.

    Args:
        query: what was asked.
        replies: to the batch of `commands`.
        epoch: the one that the caller trusts.
        now_ms: a time to count with; None takes the server's.

    Raises:
        ResponseError: a command was refused.
    """
    if replies[0] == b"OK":
        replies = replies[-1]
        for reply in replies:
            if isinstance(reply, ResponseError):
                raise reply
    *sets, (found_epoch, offline_after), time = replies
    counts = [sets.pop() for reply in replies if isinstance(reply, int)]
    if found_epoch != epoch.encode() or offline_after is None:
        return None
    newest = int(time[0]) * 1000 + int(time[1]) // 1000 if now_ms is None else now_ms
    oldest = newest - int(offline_after)
    try:
        rows = [row for found in sets for row in _fitting(found, query.min_gpu_vram_gb)]
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, TypeError):
        return None
    if len(sets) > 1:
        rows.sort(reverse=True)
    more = len(rows) > query.limit
    del rows[query.limit :]
    if not all(oldest <= seen_ms <= newest for _, _, seen_ms, _ in rows):
        return None
    agents = [row_of(AgentId(row[1]), query.agent_type, row[3], row[2]) for row in rows]
    # A single set is counted after it was read: somebody may have gone in between.
    total = max(sum(counts), len(agents) + more) if counts else None
    return CapacityPage(agents=agents, more=more, total=total)


def _fitting(found: list[Any], min_vram_gb: float) -> list[tuple[float, str, int, Document]]:
    """The rows of one set with enough free VRAM; raises what an unreadable one raises."""
    rows: list[tuple[float, str, int, Document]] = []
    for at in range(0, len(found), 3):
        document = decode_document(found[at + 2])
        if document.gpu_vram_available_gb < min_vram_gb:
            break
        rows.append((document.gpu_vram_available_gb, found[at].decode(), int(found[at + 1]), document))
    return rows
