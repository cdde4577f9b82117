"""What a lookup asks of Redis and how its replies read: shared by the service's index and the planner's client."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, Final, TypeVar

import msgspec

from app.index.clock import IndexClock
from app.index.keys import Keys, encode_pool
from app.index.placement import RESOURCE_FIELDS, decode_document, from_ms, row_of
from app.index.scripts import Argument, Call, load
from app.models.capacity import (
    AgentCapacity,
    AgentStatus,
    AvailableCapacity,
    CapacityPage,
    CapacityQuery,
    Cursor,
    Resources,
)
from app.models.identity import AgentId

T = TypeVar("T")

Trusting = Callable[[str], Call]
"""A call that names the epoch it trusts; whoever runs it knows which, and repeats it once for a newer one."""

Steps = Generator[Trusting | Call, Any, T]
"""A lookup as the calls it makes: send it their replies. A plain call tidies up, and may be left out."""

SLICE: Final = 128
"""Most agents of one set that a single script call looks at: about a millisecond of Redis's time."""

SWEEP_SLICE: Final = 12
"""Agents per script call that takes agents out or drops them."""

_MOST_SLICES: Final = 200
"""Slices of one page: some 25,000 agents, a fifth of a second."""

_SWEEPS: Final = 50

_SILENT_BOUND: Final = 32
"""A lookup that meets more silent agents than this sweeps a slice of them out of the way."""


class Slice(msgspec.Struct, frozen=True):
    """One answer of find.lua; a row is id, `seen` in ms, document."""

    rows: list[tuple[AgentId, int, bytes]]
    more: bool
    silent: int
    total: int | None
    last: Cursor | None


def find_call(
    keys: Keys,
    query: CapacityQuery,
    *,
    epoch: str,
    now_ms: int | None,
    offline_after_ms: int | None,
    limit: int,
    after: Cursor | None,
    with_total: bool,
    wide: bool,
) -> Call:
    """One slice of a search.

    An `offline_after_ms` of None leaves it to what the workers published. A `wide` one looks at SLICE agents for
    however few it returns: for a search whose candidates are being passed over, because they are silent or a
    filter that the sets do not know refuses them.
    """
    filtered = query.gpu_type is not None or query.min_memory_gb > 0 or query.max_age_s is not None
    limit = min(limit, SLICE)
    return Call(
        load("find"),
        keys.prefix,
        (
            *_times(now_ms, offline_after_ms),
            epoch,
            query.agent_type,
            "" if query.pool_name is None else encode_pool(query.pool_name),
            repr(query.min_gpu_vram_gb),
            query.min_cpu_cores,
            limit,
            "" if after is None else repr(after.gpu_vram_available_gb),
            "" if after is None else after.agent_id,
            "" if query.gpu_type is None else query.gpu_type.value,
            repr(query.min_memory_gb) if query.min_memory_gb > 0 else "",
            "" if query.max_age_s is None else round(query.max_age_s * 1000),
            # One more than wanted tells whether there is more.
            SLICE if wide or filtered else limit + 1,
            int(with_total),
        ),
    )


def parse_find(reply: list[Any]) -> Slice:
    last_id = reply[5].decode()
    return Slice(
        rows=[
            (AgentId(reply[i].decode()), int(float(reply[i + 1])), reply[i + 2]) for i in range(6, len(reply), 3)
        ],
        more=bool(reply[1]),
        silent=reply[2],
        total=None if reply[3] < 0 else reply[3],
        last=Cursor(float(reply[4]), AgentId(last_id)) if last_id else None,
    )


def get_call(
    keys: Keys, agent_id: AgentId, *, epoch: str, now_ms: int | None, offline_after_ms: int | None
) -> Call:
    return Call(load("get"), keys.prefix, (*_times(now_ms, offline_after_ms), epoch, agent_id, *RESOURCE_FIELDS))


def parse_get(agent_id: AgentId, reply: Sequence[Any]) -> AgentCapacity | None:
    """Raises msgspec.ValidationError when the agent's fields cannot be read."""
    if reply[0] == b"none":
        return None
    texts = [None if value is None else value.decode() for value in reply[3:]]
    fields = {name: text for name, text in zip(("status", *RESOURCE_FIELDS), texts, strict=True) if text}
    status = AgentStatus(fields.pop("status"))
    resources = msgspec.convert(fields, Resources, strict=False)
    return AgentCapacity(
        agent_id=agent_id,
        status=status if reply[2] else AgentStatus.OFFLINE,
        timestamp=from_ms(int(float(reply[1]))),
        **msgspec.structs.asdict(resources),
    )


def count_call(keys: Keys, query: CapacityQuery, *, epoch: str) -> Call:
    """How many fit, by thresholds and pool alone: no other filter is known to the sets."""
    return Call(
        load("count"),
        keys.prefix,
        (
            *_times(None, None),
            epoch,
            query.agent_type,
            "" if query.pool_name is None else encode_pool(query.pool_name),
            repr(query.min_gpu_vram_gb),
            query.min_cpu_cores,
        ),
    )


def sweep_call(keys: Keys, now_ms: int | None, offline_after_ms: int | None) -> Call:
    return Call(load("sweep"), keys.prefix, (*_times(now_ms, offline_after_ms), SWEEP_SLICE))


class Lookups:
    """The lookups of one shard as steps, for whoever runs them, blocking or not.

    Args:
        keys: of the shard.
        clock: what time it is; the server's own in production.
        offline_after_ms: None leaves it to what the workers published.
        skip: told of every agent whose state cannot be read.
    """

    def __init__(
        self,
        keys: Keys,
        clock: IndexClock,
        *,
        offline_after_ms: int | None,
        skip: Callable[[AgentId], None],
    ) -> None:
        self._keys = keys
        self._clock = clock
        self._offline_after_ms = offline_after_ms
        self._skip = skip

    def find(self, query: CapacityQuery, *, with_total: bool, to_the_end: bool = False) -> Steps[CapacityPage]:
        """Everything that fits, up to the limit, slice by slice; never short because of silent agents.

        A filter that the sets do not know may refuse a whole fleet: after `_MOST_SLICES` the page ends where the
        search stands, with a cursor to go on from, unless it is to go `to_the_end` by itself.
        """
        agents: list[AvailableCapacity] = []
        listed: set[AgentId] = set()
        total: int | None = None
        after, more, silent, slices = query.after, True, 0, 0
        while more and len(agents) < query.limit:
            if slices == _MOST_SLICES and not to_the_end:
                return CapacityPage(agents=agents, more=True, total=total, stopped_at=after)
            found = yield from self._slice(
                query, query.limit - len(agents), after, with_total=with_total and total is None, wide=silent > 0
            )
            total = found.total if total is None else total
            for agent_id, seen_ms, document in found.rows:
                # An agent whose figures fell between two slices would be listed a second time.
                if agent_id in listed:
                    continue
                try:
                    agents.append(row_of(agent_id, query.agent_type, decode_document(document), seen_ms))
                    listed.add(agent_id)
                except (msgspec.DecodeError, UnicodeDecodeError):
                    self._skip(agent_id)
            # Silent agents are swept out of the way: a slice of little else does not count.
            slices += 2 * found.silent < SLICE
            silent += found.silent
            if silent > _SILENT_BOUND:
                yield sweep_call(self._keys, self._clock.now_ms(), self._offline_after_ms)
            after, more = found.last, found.more
        return CapacityPage(agents=agents, more=more, total=total)

    def get(self, agent_id: AgentId) -> Steps[AgentCapacity | None]:
        """None for an unknown agent; one whose metrics cannot be read has nothing free."""
        reply = yield lambda epoch: get_call(
            self._keys,
            agent_id,
            epoch=epoch,
            now_ms=self._clock.now_ms(),
            offline_after_ms=self._offline_after_ms,
        )
        try:
            return parse_get(agent_id, reply)
        except (msgspec.ValidationError, ValueError):
            self._skip(agent_id)
            return parse_get(agent_id, [*reply[:4], *[None] * (len(reply) - 4)])

    def count(self, query: CapacityQuery) -> Steps[int]:
        """How many fit; with a filter that the sets do not know, they are found one by one."""
        if not query.counted:
            page = yield from self.find(query, with_total=False, to_the_end=True)
            return len(page.agents)
        reply = yield lambda epoch: count_call(self._keys, query, epoch=epoch)
        return int(reply[1])

    def sweep(self) -> Steps[None]:
        """Takes silent agents out of the way of whoever counts; a bounded number of them."""
        for _ in range(_SWEEPS):
            swept = yield sweep_call(self._keys, self._clock.now_ms(), self._offline_after_ms)
            if swept is None or swept < SWEEP_SLICE:
                return

    def _slice(
        self, query: CapacityQuery, limit: int, after: Cursor | None, *, with_total: bool, wide: bool
    ) -> Steps[Slice]:
        reply = yield lambda epoch: find_call(
            self._keys,
            query,
            epoch=epoch,
            now_ms=self._clock.now_ms(),
            offline_after_ms=self._offline_after_ms,
            limit=limit,
            after=after,
            with_total=with_total,
            wide=wide,
        )
        return parse_find(reply)


def _times(now_ms: int | None, offline_after_ms: int | None) -> tuple[Argument, Argument]:
    """The first two arguments of most scripts; empty ones leave it to the server."""
    return "" if now_ms is None else now_ms, "" if offline_after_ms is None else offline_after_ms
