"""What a rebuild puts back, and what it leaves alone."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from app.index.clock import ManualClock
from app.index.opening import Index
from app.index.placement import from_ms
from app.models.agent import RecordedState, RegisteredAgent
from app.models.capacity import AgentStatus, CapacityQuery, GpuType
from app.models.cordon import Cordon
from app.models.identity import StreamId
from app.models.order import Order
from tests.consistency import assert_index_consistent
from tests.indexing import agent_id, apply_everything, heartbeat, index_settings, opened_index

START_MS = 1_800_000_000_000


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START_MS)


@pytest.fixture
async def index(redis_url: str, clock: ManualClock) -> AsyncIterator[Index]:
    async with opened_index(index_settings(redis_url), clock=clock) as index:
        yield index


def recorded(
    number: int, last_id: StreamId, *, status: AgentStatus, cordon: Cordon | None = None
) -> RecordedState:
    """An agent that never sent any metrics."""
    agent = RegisteredAgent(
        agent_id=agent_id(number),
        agent_type="desktop",
        pool_name="default",
        hostname="",
        status=status,
        last_heartbeat_at=from_ms(last_id.ms),
        registered_at=from_ms(last_id.ms),
        boot_id=None,
        seq=None,
        gpus=(),
        resource_metrics=None,
        cordon=cordon,
    )
    cordon_id = None if cordon is None else last_id
    return RecordedState(agent=agent, order=Order(last_id=last_id), cordon=cordon, cordon_id=cordon_id)


@pytest.mark.parametrize("status", AgentStatus)
async def test_an_agent_without_metrics_counts_as_one_without_a_gpu(index: Index, status: AgentStatus) -> None:
    assert await index.upkeep.restore([recorded(1, StreamId(START_MS - 1), status=status)]) == 1
    await assert_index_consistent(index)
    totals, _ = await index.insight.summary(limit=10)
    assert [one.gpu_type for one in totals] == [GpuType.NONE]
    explained = await index.insight.explain(CapacityQuery(min_gpu_vram_gb=1.0))
    assert explained.agents == 0
    await index.log.append([heartbeat(1)])
    await apply_everything(index)
    await assert_index_consistent(index)


async def test_an_agent_forgotten_since_it_was_recorded_stays_forgotten(index: Index, clock: ManualClock) -> None:
    (last_id,) = await index.log.append([heartbeat(1)])
    await apply_everything(index)
    clock.advance(1)
    await index.capacity.forget(agent_id(1))
    cordon = Cordon(reason="r", actor="a", since=from_ms(clock.now_ms()))
    known = recorded(1, last_id, status=AgentStatus.ONLINE, cordon=cordon)
    assert await index.upkeep.restore([known]) == 0
    assert await index.capacity.get(agent_id(1)) is None
    await assert_index_consistent(index)


async def test_an_agent_recorded_since_it_was_forgotten_comes_back_for_good(
    index: Index, clock: ManualClock
) -> None:
    await index.log.append([heartbeat(1)])
    await apply_everything(index)
    await index.capacity.forget(agent_id(1))
    clock.advance(1)
    later = recorded(1, StreamId(clock.now_ms()), status=AgentStatus.ONLINE)
    assert await index.upkeep.restore([later]) == 1
    assert await index.capacity._client.pttl(index.keys.agent(agent_id(1))) == -1
    await assert_index_consistent(index)
