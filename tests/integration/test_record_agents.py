"""The registry: listing, paging, forgetting, and what a rebuild reads."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select, text

from app.models.agent import AgentFilter
from app.models.capacity import AgentStatus, GpuType, Resources
from app.models.heartbeat import ResourceMetrics
from app.models.identity import AgentId
from app.models.order import Boot, Order
from app.models.transition import TransitionKind
from app.record import Record
from app.record.tables import agent_history
from tests.indexing import agent_id, heartbeat
from tests.logs import beat, change, moment, silence, stream_id


async def listed(record: Record, **wanted: object) -> list[int]:
    page = await record.agents.list_agents(AgentFilter(**wanted))  # type: ignore[arg-type]  # names are checked by msgspec
    return [int(agent.agent_id[-12:], 16) for agent in page.agents]


@pytest.fixture
async def fleet(record: Record) -> Record:
    amd = ResourceMetrics(gpu_type=GpuType.AMD)
    await record.writer.write(
        [
            beat(0, heartbeat(1, hostname="alpha")),
            beat(1, heartbeat(2, pool_name="b", status=AgentStatus.BUSY)),
            beat(2, heartbeat(3, agent_type="infra", resource_metrics=amd)),
            beat(3, heartbeat(4)),
            beat(4, heartbeat(5, status=AgentStatus.OFFLINE)),
            silence(93.5, 4, after_s=3),
        ]
    )
    return record


async def test_agents_are_listed_by_id_offline_ones_included(fleet: Record) -> None:
    assert await listed(fleet) == [1, 2, 3, 4, 5]


async def test_filters_are_exact_and_combine(fleet: Record) -> None:
    assert await listed(fleet, agent_type="infra") == [3]
    assert await listed(fleet, pool_name="b") == [2]
    assert await listed(fleet, status=AgentStatus.OFFLINE) == [4, 5]
    assert await listed(fleet, gpu_type=GpuType.AMD) == [3]
    assert await listed(fleet, hostname="alpha") == [1]
    assert await listed(fleet, hostname="ALPHA") == []
    assert await listed(fleet, status=AgentStatus.OFFLINE, pool_name="b") == []


async def test_pages_follow_each_other(fleet: Record) -> None:
    first = await fleet.agents.list_agents(AgentFilter(limit=2))
    assert first.more
    after = first.agents[-1].agent_id
    assert await listed(fleet, limit=3, after=after) == [3, 4, 5]
    last = await fleet.agents.list_agents(AgentFilter(limit=3, after=after))
    assert not last.more


async def test_an_unknown_agent_has_nothing(record: Record) -> None:
    unknown = AgentId("ffffffff-ffff-4fff-8fff-ffffffffffff")
    assert await record.agents.agent(unknown) is None
    assert await record.agents.history(unknown, limit=5) is None
    assert await record.agents.forget(unknown, position=None) is False


async def test_history_of_a_single_heartbeat(record: Record) -> None:
    await record.writer.write([beat(0, heartbeat(1, resource_metrics=None))])
    history = await record.agents.history(agent_id(1), limit=1)
    assert history is not None
    ((sample,), events) = (history.samples, history.events)
    assert (sample.at, sample.status, sample.resources) == (moment(0), AgentStatus.ONLINE, Resources())
    assert events == []


async def test_a_malformed_sample_is_left_out(record: Record) -> None:
    await record.writer.write([beat(at_s, heartbeat(1)) for at_s in (0, 300, 600)])
    async with record.database.writing() as connection:
        oldest = await connection.scalar(select(func.min(agent_history.c.slot_ms)))
        spoilt = text("""UPDATE agent_history SET resource_metrics = '"x"' WHERE slot_ms = :oldest""")
        await connection.execute(spoilt, {"oldest": oldest})
    history = await record.agents.history(agent_id(1), limit=5)
    assert history is not None
    assert [sample.at for sample in history.samples] == [moment(600), moment(300)]


async def test_forgetting_hides_until_something_newer_is_heard(record: Record) -> None:
    await record.writer.write([beat(0, heartbeat(1, seq=5)), beat(400, heartbeat(1, seq=6))])
    assert await record.agents.forget(agent_id(1), position=stream_id(401)) is True
    assert await record.agents.forget(agent_id(1), position=stream_id(401)) is False
    assert await listed(record) == []
    async with record.database.reading() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM agent_history")) == 0
    await record.writer.write([beat(400.5, heartbeat(1, seq=7))])
    assert await listed(record) == []
    await record.writer.write([beat(402, heartbeat(1, seq=1))])
    found = await record.agents.agent(agent_id(1))
    assert found is not None
    assert (found.registered_at, found.seq) == (moment(402), 1)


async def test_forgetting_loses_against_a_newer_heartbeat(record: Record) -> None:
    await record.writer.write([beat(0, heartbeat(1)), beat(10, heartbeat(1))])
    assert await record.agents.forget(agent_id(1), position=stream_id(9)) is True
    assert await listed(record) == [1]


async def test_forgetting_without_a_position_hides_in_any_case(record: Record) -> None:
    await record.writer.write([beat(10, heartbeat(1))])
    assert await record.agents.forget(agent_id(1), position=None) is True
    assert await listed(record) == []
    await record.writer.write([beat(11, heartbeat(1))])
    assert await listed(record) == [1]


async def test_the_logs_word_for_what_is_already_forgotten_changes_nothing_but_the_chain(record: Record) -> None:
    await record.writer.write([beat(0, heartbeat(1)), change(0, 1, TransitionKind.ONLINE)])
    await record.agents.forget(agent_id(1), position=stream_id(5, 1))
    batch = await record.writer.write([change(5, 1, TransitionKind.FORGOTTEN)])
    assert batch.transitions == 1
    assert await listed(record) == []


async def test_a_rebuild_reads_every_agent_once_with_its_order(fleet: Record) -> None:
    await fleet.writer.write(
        [beat(100, heartbeat(1, seq=3, boot_id="x")), beat(101, heartbeat(1, seq=1, boot_id="y"))]
    )
    await fleet.agents.forget(agent_id(2), position=None)
    pages = [page async for page in fleet.reader.states(page_size=2)]
    assert [len(page) for page in pages] == [2, 2]
    states = [state for page in pages for state in page]
    assert [state.agent.agent_id for state in states] == [agent_id(number) for number in (1, 3, 4, 5)]
    assert states[0].order == Order(last_id=stream_id(101), holder=Boot("y", 1), retired=(Boot("x", 3),))
    assert states[2].agent.status is AgentStatus.OFFLINE


async def test_an_empty_record_has_no_states(record: Record) -> None:
    assert [page async for page in record.reader.states(page_size=2)] == []


async def test_the_record_answers_a_ping(record: Record) -> None:
    await record.agents.ping()
