"""The audit: holds the index against itself and against the record, and can put right what differs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from app.index.audit import Totals, TotalsCount
from app.index.states import entries_of
from app.models.capacity import AgentStatus, Resources
from app.models.finding import Finding

if TYPE_CHECKING:
    from app.index.opening import Index
    from app.index.states import IndexedAgent
    from app.models.agent import RecordedState
    from app.models.identity import AgentId, StreamId
    from app.record import Record

_PAGE: Final = 500
_MOST_SUSPECTS: Final = 50_000
"""Differences that are kept for a second look."""


class _Difference(NamedTuple):
    what: str
    last_id: StreamId | None


class Audit:
    """Reads in slices and pauses in between, so that a live system hardly notices.

    What changes while it is looked at is looked at twice: only a difference that stays is reported.

    Args:
        index: what lookups are answered from.
        record: what it should agree with.
        pause_s: between two slices.
        settle_s: what the workers are given to catch up before a difference counts.
        progress: told of every step with the agents looked at in it.
    """

    def __init__(
        self,
        index: Index,
        record: Record,
        *,
        pause_s: float = 0.005,
        settle_s: float = 3.0,
        progress: Callable[[str, int], None] = lambda _step, _agents: None,
    ) -> None:
        self._index = index
        self._record = record
        self._pause_s = pause_s
        self._settle_s = settle_s
        self._progress = progress

    async def run(self, *, repair: bool) -> AsyncIterator[Finding]:
        """Yields every difference. May raise IndexUnavailableError or RecordUnavailableError."""
        # First the totals to which nothing can be added: other repairs end with adding to them.
        for part in (self._damaged_totals, self._sets, self._totals, self._against_record):
            async for finding in part(repair=repair):
                yield finding

    async def _sets(self, *, repair: bool) -> AsyncIterator[Finding]:
        async for agent_ids in self._index.audit.agent_ids():
            for finding in await self._index.audit.agents(agent_ids, repair=repair):
                yield finding
            self._progress("sets", len(agent_ids))
            await asyncio.sleep(self._pause_s)
        async for finding in self._index.audit.strays(repair=repair):
            yield finding

    async def _damaged_totals(self, *, repair: bool) -> AsyncIterator[Finding]:
        damaged = await self._index.audit.damaged_totals(repair=repair)
        for key, field in damaged:
            what = "its key is no hash" if field is None else f"{field} is no total"
            yield Finding(where="totals", subject=key, what=what, repaired=repair)
        if damaged and repair:
            # All of them is missing. This is off by what is under way; to wait until two looks agree, as below,
            # would leave out all of it on a busy fleet.
            missing = await self._missing_totals()
            of_damaged: Totals = {}
            for key, fields in missing.items():
                for field, number in fields.items():
                    if (key, None) in damaged or (key, field) in damaged:
                        of_damaged.setdefault(key, {})[field] = number
            await self._index.audit.correct_totals(of_damaged)

    async def _totals(self, *, repair: bool) -> AsyncIterator[Finding]:
        first = await self._missing_totals()
        if not first:
            return
        await asyncio.sleep(self._settle_s)
        second = await self._missing_totals()
        lasting: Totals = {}
        for key, fields in first.items():
            for field, missing in fields.items():
                if second.get(key, {}).get(field) == missing:
                    lasting.setdefault(key, {})[field] = missing
                    what = f"{field} is {abs(missing)} too {'low' if missing > 0 else 'high'}"
                    yield Finding(where="totals", subject=key, what=what, repaired=repair)
        if repair:
            await self._index.audit.correct_totals(lasting)

    async def _missing_totals(self) -> Totals:
        count = TotalsCount(self._index.keys)
        async for page in self._pages():
            for agent in page:
                count.add(agent)
        return count.missing_from(await self._index.audit.totals())

    async def _against_record(self, *, repair: bool) -> AsyncIterator[Finding]:
        suspects: dict[AgentId, _Difference] = {}
        async for found in self._suspects():
            suspects |= found
            if len(suspects) >= _MOST_SUSPECTS:
                async for finding in self._lasting(suspects, repair=repair):
                    yield finding
                suspects = {}
        async for finding in self._lasting(suspects, repair=repair):
            yield finding

    async def _suspects(self) -> AsyncIterator[dict[AgentId, _Difference]]:
        """All that differ at a first look, page by page, however large the fleet is."""
        async for agent_ids in self._index.audit.agent_ids():
            found = await self._differences(agent_ids)
            # Those that have but a tombstone come with the record's.
            yield {agent_id: one for agent_id, one in found.items() if one.last_id is not None}
            self._progress("record", len(agent_ids))
            await asyncio.sleep(self._pause_s)
        async for states in self._record.reader.states(page_size=_PAGE):
            recorded = [state.agent.agent_id for state in states]
            indexed = {agent.heartbeat.agent_id for agent in await self._index.states.some(recorded)}
            yield await self._differences([agent_id for agent_id in recorded if agent_id not in indexed])
            await asyncio.sleep(self._pause_s)

    async def _lasting(self, suspects: dict[AgentId, _Difference], *, repair: bool) -> AsyncIterator[Finding]:
        lasting = await self._still(suspects)
        left: dict[AgentId, _Difference] = {}
        if repair:
            for part in _parts(lasting):
                await self._agree(part)
                left |= await self._differences(part)
            # One that has reported since differs too, until that is recorded.
            left = await self._still(left)
        for agent_id, difference in lasting.items():
            repaired = repair and agent_id not in left
            yield Finding(where="record", subject=agent_id, what=difference.what, repaired=repaired)

    async def _still(self, suspects: dict[AgentId, _Difference]) -> dict[AgentId, _Difference]:
        """Those that are as they were, after the workers had the time to catch up; in the order of their ids."""
        if suspects:
            await asyncio.sleep(self._settle_s)
        still: dict[AgentId, _Difference] = {}
        for part in _parts(suspects):
            now = await self._differences(part)
            still |= {agent_id: now[agent_id] for agent_id in part if now.get(agent_id) == suspects[agent_id]}
        return still

    async def _differences(self, agent_ids: Sequence[AgentId]) -> dict[AgentId, _Difference]:
        indexed = {agent.heartbeat.agent_id: agent for agent in await self._index.states.some(agent_ids)}
        differences: dict[AgentId, _Difference] = {}
        for state in await self._record.reader.some(agent_ids):
            agent = indexed.pop(state.agent.agent_id, None)
            what = _difference(agent, state)
            if what:
                differences[state.agent.agent_id] = _Difference(what, agent.last_id if agent else None)
        for agent_id, agent in indexed.items():
            differences[agent_id] = _Difference("is in the index alone", agent.last_id)
        return differences

    async def _agree(self, agent_ids: Sequence[AgentId]) -> None:
        """The newer side wins by the order rule: index to record, and what only the record has to the index."""
        agents = await self._index.states.some(agent_ids)
        await self._record.writer.write([entry for agent in agents for entry in entries_of(agent)])
        await self._index.upkeep.restore(await self._record.reader.some(agent_ids))
        self._progress("repair", len(agent_ids))

    async def _pages(self) -> AsyncIterator[list[IndexedAgent]]:
        """Pages without agents that an earlier page had: Redis may show one twice."""
        shown: set[AgentId] = set()
        async for page in self._index.states.agents():
            fresh = [agent for agent in page if agent.heartbeat.agent_id not in shown]
            shown |= {agent.heartbeat.agent_id for agent in fresh}
            yield fresh
            self._progress("totals", len(fresh))
            await asyncio.sleep(self._pause_s)


def _parts(agent_ids: Iterable[AgentId]) -> Iterator[list[AgentId]]:
    ordered = sorted(agent_ids)
    for at in range(0, len(ordered), _PAGE):
        yield ordered[at : at + _PAGE]


def _difference(agent: IndexedAgent | None, state: RecordedState) -> str:
    """What differs, empty for nothing. Agents that are long offline are in the record alone, and may be."""
    if agent is None:
        return "" if state.agent.status is AgentStatus.OFFLINE else "is in the record alone"
    if agent.last_id != state.order.last_id:
        return f"last heartbeat {agent.last_id} in the index, {state.order.last_id} in the record"
    if agent.status is not state.agent.status:
        return f"{agent.status} in the index, {state.agent.status} in the record"
    if Resources.of(agent.heartbeat.metrics) != Resources.of(state.agent.resource_metrics):
        return "other metrics in the index than in the record"
    if agent.cordon != state.cordon:
        return "other cordon in the index than in the record"
    return ""
