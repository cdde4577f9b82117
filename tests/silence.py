"""What the tests of silence share: agents that report, whom a search finds, and what became of them."""

from __future__ import annotations

from app.index.opening import Index
from app.models.capacity import AgentStatus, CapacityQuery
from app.models.identity import AgentId
from app.models.transition import Reason, Transition, TransitionKind
from tests.indexing import agent_id, apply_everything, heartbeat
from workers.clock_watch import ClockWatch
from workers.reaper import Reaper

OFFLINE_AFTER_S = 90.0


def reaper(index: Index) -> Reaper:
    return Reaper(index.upkeep, "test", every_s=0, watch=ClockWatch(index.upkeep))


async def report(index: Index, *numbers: int) -> None:
    """Takes a heartbeat of each of these agents the whole way into the index."""
    await index.log.append([heartbeat(n) for n in numbers])
    await apply_everything(index)


async def found(index: Index) -> list[AgentId]:
    page = await index.capacity.find(CapacityQuery())
    return [row.agent_id for row in page.agents]


async def status(index: Index, number: int) -> AgentStatus:
    agent = await index.capacity.get(agent_id(number))
    assert agent is not None
    return agent.status


async def transitions(index: Index) -> list[tuple[AgentId, TransitionKind, Reason]]:
    seen = []
    reader = index.record_reader()
    while entries := await reader.read():
        seen += [
            (entry.body.agent_id, entry.body.kind, entry.body.reason)
            for entry in entries
            if isinstance(entry.body, Transition)
        ]
        await reader.ack([entry.stream_id for entry in entries])
    return seen
