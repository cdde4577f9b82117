"""Ingest: what the index cannot take stops nobody else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.index.opening import Index
from app.models.capacity import CapacityQuery
from app.models.insight import PoolTotals
from tests.indexing import agent_id, apply_everything, heartbeat, index_settings, opened_index


@pytest.fixture
async def index(redis_url: str) -> AsyncIterator[Index]:
    async with opened_index(index_settings(redis_url)) as index:
        yield index


async def totals(index: Index) -> list[PoolTotals]:
    found, _ = await index.insight.summary(agent_type=None, pool_name=None, limit=10, after=None)
    return found


async def test_a_heartbeat_of_an_agent_that_somebody_damaged_is_set_aside(index: Index) -> None:
    client: Any = index.capacity._client
    await index.log.append([heartbeat(n, vram=float(n)) for n in range(1, 21)])
    await apply_everything(index)
    before = await totals(index)
    await client.delete(index.keys.agent(agent_id(5)))
    await client.set(index.keys.agent(agent_id(5)), "not a hash")
    await index.log.append([heartbeat(n, vram=float(n) + 1) for n in range(1, 21)])
    await apply_everything(index)
    for n in (*range(1, 5), *range(6, 21)):
        agent = await index.capacity.get(agent_id(n))
        assert agent is not None
        assert agent.gpu_vram_available_gb == n + 1.0
    letters = await client.xrange(index.keys.dead_letters)
    assert [fields[b"reason"] for _, fields in letters] == [b"The index cannot take it"]
    # What was applied beside it counts, and the damaged one as it did before.
    assert sum(one.gpu_vram_available_gb for one in await totals(index)) == (
        sum(one.gpu_vram_available_gb for one in before) + 19.0
    )


async def test_an_agent_whose_place_cannot_be_read_holds_up_nobody(index: Index) -> None:
    await index.log.append([heartbeat(n, vram=float(n)) for n in range(1, 21)])
    await apply_everything(index)
    client: Any = index.capacity._client
    await client.hset(index.keys.agent(agent_id(5)), "indexed", "nonsense")
    await index.log.append([heartbeat(n, vram=float(n) + 1) for n in range(1, 21)])
    await apply_everything(index)
    found = (await index.capacity.find(CapacityQuery())).agents
    assert {row.agent_id: row.gpu_vram_available_gb for row in found} == {
        agent_id(n): n + 1.0 for n in range(1, 21)
    }
