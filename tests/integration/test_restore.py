"""What a rebuild puts back, and what it leaves alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any
from unittest.mock import AsyncMock

import pytest

from app.index.clock import ManualClock
from app.index.connect import server_run_id
from app.index.opening import Index
from app.index.placement import from_ms
from app.models.agent import RecordedState, RegisteredAgent
from app.models.capacity import AgentStatus, CapacityQuery, GpuType
from app.models.cordon import Cordon
from app.models.identity import StreamId
from app.models.order import Boot, Order
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
    number: int,
    last_id: StreamId,
    *,
    status: AgentStatus = AgentStatus.ONLINE,
    cordon: Cordon | None = None,
    boots: Sequence[Boot] = (),
) -> RecordedState:
    """An agent that never sent any metrics; the first of the boots is in force."""
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
    order = Order(last_id=last_id, holder=boots[0] if boots else None, retired=tuple(boots[1:]))
    return RecordedState(agent=agent, order=order, cordon=cordon, cordon_id=cordon_id)


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


async def order_of(index: Index, number: int) -> tuple[str, str, list[str]]:
    """The boot in force, its seq, and the retired boots."""
    client: Any = index.capacity._client
    boot_id, seq, boots = await client.hmget(index.keys.agent(agent_id(number)), "boot_id", "seq", "boots")
    return boot_id.decode(), seq.decode(), boots.decode().splitlines()


async def report(index: Index, boot_id: str | None, seq: int | None) -> None:
    if boot_id is None:
        await index.log.append([heartbeat(1)])
    else:
        await index.log.append([heartbeat(1, boot_id=boot_id, seq=seq)])
    await apply_everything(index)


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        ([("b", 7)], ("b", "7", ["3 a"])),
        ([("c", 1)], ("c", "1", ["5 b", "3 a"])),
        ([("c", 1), ("d", 1)], ("d", "1", ["1 c", "5 b", "3 a"])),
        ([("b", 6), ("c", 1)], ("c", "1", ["6 b", "3 a"])),
        ([(None, None)], ("b", "5", ["3 a"])),
    ],
)
async def test_boots_that_the_index_has_forgotten_are_recalled(
    index: Index, reported: list[tuple[str | None, int | None]], expected: tuple[str, str, list[str]]
) -> None:
    for boot_id, seq in reported:
        await report(index, boot_id, seq)
    known = recorded(1, StreamId(START_MS - 1_000), boots=[Boot("b", 5), Boot("a", 3)])
    for _ in range(2):
        assert await index.upkeep.restore([known]) == 0
        assert await order_of(index, 1) == expected
    await assert_index_consistent(index)


@pytest.mark.parametrize("seq", [2, 9])
async def test_an_old_boot_that_won_while_the_index_had_forgotten_it_loses_again(index: Index, seq: int) -> None:
    await report(index, "a", seq)
    known = recorded(1, StreamId(START_MS - 1_000), boots=[Boot("b", 5), Boot("a", 3)])
    assert await index.upkeep.restore([known]) == 1
    assert await order_of(index, 1) == ("b", "5", ["3 a"])
    await assert_index_consistent(index)


async def test_what_was_reported_below_the_recorded_ids_counts_by_its_seq(
    index: Index, clock: ManualClock
) -> None:
    """Redis lost everything after its clock had been set back."""
    client: Any = index.capacity._client
    greatest = StreamId(clock.now_ms(), 7)
    states = [recorded(n, greatest, boots=[Boot("a", 3), Boot("z", 9)]) for n in (1, 2, 3)]
    await client.flushall()
    clock.jump(-3600)
    beats = [heartbeat(1, vram=5.0, boot_id="a", seq=4), heartbeat(2, vram=6.0, boot_id="a", seq=3)]
    await index.log.append([*beats, heartbeat(3, boot_id="a", seq=4, status=AgentStatus.OFFLINE)])
    await index.upkeep.begin_rebuild("again", None)
    await apply_everything(index)
    await index.upkeep.begin_rebuild("again", greatest)
    assert await index.upkeep.restore(states) == 2
    assert await index.upkeep.open_epoch("again")
    assert [row.agent_id for row in (await index.capacity.find(CapacityQuery())).agents] == [agent_id(1)]
    assert await order_of(index, 1) == ("a", "4", ["9 z"])
    assert await client.hget(index.keys.agent(agent_id(1)), "last_id") == str(greatest).encode()
    await assert_index_consistent(index)
    clock.advance(30)
    await index.log.append([heartbeat(1, vram=4.0, boot_id="a", seq=5)])
    await apply_everything(index)
    assert [row.gpu_vram_available_gb for row in (await index.capacity.find(CapacityQuery())).agents] == [4.0]


async def test_a_rebuild_begins_again_on_another_run_of_the_server(index: Index) -> None:
    """A server that restarted has the marker, and may lack what was put back last."""
    await index.upkeep.begin_rebuild("mine", None)
    for run_id, opened in (("f" * 40, False), (None, True)):
        index.epochs._read_run_id = server_run_id if run_id is None else AsyncMock(return_value=run_id)
        assert await index.upkeep.open_epoch("mine") is opened
