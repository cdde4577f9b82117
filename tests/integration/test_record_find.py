"""Capacity from the record: who is found, in which order, and what one agent has."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from app.errors import RecordUnavailableError
from app.models.capacity import AgentStatus, CapacityQuery, Cursor, GpuType
from app.models.heartbeat import Heartbeat, ResourceMetrics
from app.models.transition import TransitionKind
from app.record import Record
from app.telemetry import MALFORMED_AGENTS
from tests.indexing import agent_id, heartbeat
from tests.logs import START_MS, beat, change, moment, silence, stream_id
from tests.servers import free_port


def metrics(**sent: Any) -> ResourceMetrics:
    return ResourceMetrics(**sent)


async def find(record: Record, *, since_s: float = 0, **wanted: Any) -> list[int]:
    page = await record.capacity.find(CapacityQuery(**wanted), seen_since_ms=START_MS + round(since_s * 1000))
    return [int(found.agent_id[-12:], 16) for found in page.agents]


async def write(record: Record, *heartbeats: Heartbeat, at_s: float = 10) -> None:
    await record.writer.write([beat(at_s, each, n=n) for n, each in enumerate(heartbeats)])


async def test_most_free_vram_first_ties_by_descending_id(record: Record) -> None:
    await write(record, *(heartbeat(n, vram=vram) for n, vram in [(1, 8.0), (2, 24.0), (3, 8.0), (4, 4.0)]))
    assert await find(record) == [2, 3, 1, 4]
    assert await find(record, min_gpu_vram_gb=8.0) == [2, 3, 1]


async def test_ids_sort_as_text_whatever_their_digits(record: Record) -> None:
    await write(record, *(heartbeat(n) for n in (9, 10, 0xA0, 0xB, 255)))
    assert await find(record) == [255, 0xA0, 0xB, 10, 9]


async def test_the_row_says_what_the_index_would(record: Record) -> None:
    await write(record, heartbeat(1, vram=4.5, cores=3, pool_name="a b"), at_s=10.001)
    page = await record.capacity.find(CapacityQuery(), seen_since_ms=START_MS)
    (found,) = page.agents
    assert (found.agent_id, found.agent_type, found.pool_name, found.status) == (
        agent_id(1),
        "desktop",
        "a b",
        AgentStatus.ONLINE,
    )
    assert (found.gpu_vram_available_gb, found.cpu_cores_available, found.cpu_load_1min) == (4.5, 3, 0.0)
    assert found.last_heartbeat_at == moment(10.001)
    assert (page.total, page.more, page.source, page.as_of) == (1, False, "record", moment(10.001))


async def test_only_placeable_agents_are_found(record: Record) -> None:
    await write(
        record,
        heartbeat(1, status=AgentStatus.BUSY),
        heartbeat(2, status=AgentStatus.OFFLINE),
        heartbeat(3, resource_metrics=None),
        heartbeat(4, resource_metrics=metrics()),
        heartbeat(5, agent_type="infra"),
        heartbeat(6),
        heartbeat(7),
        heartbeat(8),
    )
    await record.writer.write([silence(101, 7, after_s=10.1), change(102, 8, TransitionKind.FORGOTTEN)])
    assert await find(record) == [6]
    assert await find(record, agent_type="infra") == [5]


async def test_freshness_is_that_of_the_receiver_to_the_millisecond(record: Record) -> None:
    await write(record, heartbeat(1), at_s=10)
    await write(record, heartbeat(2), at_s=9.999)
    assert await find(record, since_s=10) == [1]
    assert await find(record, since_s=10.001) == []
    assert await find(record, since_s=-80 + 9.9995, max_age_s=0.0) == []


async def test_max_age_counts_from_the_moment_of_the_question(record: Record) -> None:
    await write(record, heartbeat(1), at_s=60)
    await write(record, heartbeat(2), at_s=30)
    # Asked at 70 s, with 90 s of silence allowed.
    assert await find(record, since_s=-20) == [2, 1]
    assert await find(record, since_s=-20, max_age_s=40) == [2, 1]
    assert await find(record, since_s=-20, max_age_s=39.999) == [1]
    assert await find(record, since_s=-20, max_age_s=500) == [2, 1]


async def test_gaps_are_filled_as_in_the_index(record: Record) -> None:
    await write(record, heartbeat(1, resource_metrics=metrics(cpu_percent=1.0)), heartbeat(2, cores=0))
    assert await find(record) == [1]
    assert await find(record, min_cpu_cores=2) == []
    assert await find(record, gpu_type=GpuType.NONE) == [1]


@pytest.mark.parametrize("cores", [65_537, 2**31, 2**63, 2**70])
async def test_more_cores_than_anybody_has_is_no_error(record: Record, cores: int) -> None:
    await write(record, heartbeat(1, cores=65_536))
    assert await find(record, min_cpu_cores=65_536) == [1]
    assert await find(record, min_cpu_cores=cores) == []


async def test_filters_of_pool_gpu_and_memory(record: Record) -> None:
    def sent(gpu: GpuType, memory_gb: float | None) -> ResourceMetrics:
        return metrics(gpu_type=gpu, memory_available_gb=memory_gb, cpu_cores_available=1)

    await write(
        record,
        heartbeat(1, pool_name="a", resource_metrics=sent(GpuType.NVIDIA, 4.0)),
        heartbeat(2, pool_name="b", resource_metrics=sent(GpuType.AMD, 8.0)),
        heartbeat(3, pool_name="b", resource_metrics=sent(GpuType.AMD, None)),
    )
    assert await find(record, pool_name="b") == [3, 2]
    assert await find(record, pool_name="B") == []
    assert await find(record, gpu_type=GpuType.NVIDIA) == [1]
    assert await find(record, min_memory_gb=4.0) == [2, 1]
    assert await find(record, min_memory_gb=0.1, gpu_type=GpuType.AMD, pool_name="b") == [2]


async def test_pages_join_without_gap_or_overlap(record: Record) -> None:
    await write(record, *(heartbeat(n, vram=[4.0, 0.1 + 0.2, 8.0][n % 3]) for n in range(20)))
    whole = await find(record)
    joined: list[int] = []
    after: Cursor | None = None
    while True:
        page = await record.capacity.find(CapacityQuery(limit=3, after=after), seen_since_ms=START_MS)
        assert page.total == 20
        joined += [int(found.agent_id[-12:], 16) for found in page.agents]
        after = page.cursor
        if after is None:
            break
    assert joined == whole
    exact = await record.capacity.find(CapacityQuery(limit=20), seen_since_ms=START_MS)
    assert exact.more is False


async def test_the_total_is_left_out_where_the_index_would_leave_it_out(record: Record) -> None:
    await write(record, heartbeat(1), heartbeat(2, pool_name="b"))
    cases: list[tuple[dict[str, Any], int | None]] = [
        ({}, 2),
        ({"pool_name": "b"}, 1),
        ({"min_cpu_cores": 5}, 0),
        ({"gpu_type": GpuType.NVIDIA}, None),
        ({"min_memory_gb": 1.0}, None),
        ({"max_age_s": 60.0}, None),
    ]
    for wanted, total in cases:
        page = await record.capacity.find(CapacityQuery(**wanted), seen_since_ms=START_MS)
        assert page.total == total


async def test_an_empty_record_answers_nothing(record: Record) -> None:
    page = await record.capacity.find(CapacityQuery(), seen_since_ms=0)
    assert (page.agents, page.total, page.as_of) == ([], 0, None)
    assert await record.capacity.newest_heartbeat() is None
    assert await record.capacity.get(agent_id(1), seen_since_ms=0) is None


async def spoil(record: Record, number: int, document: str) -> None:
    async with record.database.writing() as connection:
        await connection.execute(
            text(
                f"UPDATE agent_registry SET resource_metrics = '{document}' WHERE agent_id = '{agent_id(number)}'"
            )
        )


@pytest.mark.parametrize(
    "document", ['{"cpu_load_1min": "much"}', "[]", '"text"', "7", '{"gpu_type": "matrox"}', '{"cpu_percent": {}}']
)
async def test_malformed_metrics_are_skipped_and_make_no_answer_short(
    record: Record, document: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    await write(record, *(heartbeat(n) for n in range(1, 6)))
    await spoil(record, 4, document)
    before = MALFORMED_AGENTS.labels(source="record")._value.get()
    with caplog.at_level(logging.WARNING):
        assert await find(record, limit=3) == [5, 3, 2]
    page = await record.capacity.find(CapacityQuery(limit=4), seen_since_ms=START_MS)
    assert (len(page.agents), page.more) == (4, False)
    assert MALFORMED_AGENTS.labels(source="record")._value.get() == before + 2
    assert agent_id(4) in caplog.text + capsys.readouterr().out
    alone = await record.capacity.get(agent_id(4), seen_since_ms=START_MS)
    assert alone is not None
    assert (alone.gpu_vram_available_gb, alone.cpu_cores_available) == (0.0, 0)


async def test_text_that_is_no_json_is_skipped_too(
    sqlite_record_url: str, record: Record, record_url: str
) -> None:
    if record_url.startswith("postgresql"):
        with pytest.raises(Exception, match="json"):
            await spoil(record, 1, "{")
        return
    await write(record, heartbeat(1), heartbeat(2))
    await spoil(record, 1, "{")
    assert await find(record) == [2]
    states = [page async for page in record.reader.states(page_size=10)]
    assert [state.agent.resource_metrics is None for state in states[0]] == [True, False]


async def test_one_agent_with_everything(record: Record) -> None:
    sent = metrics(
        cpu_percent=50.0,
        cpu_cores_physical=8,
        cpu_cores_available=4,
        cpu_load_1min=2.0,
        cpu_load_5min=1.5,
        memory_percent=60.0,
        memory_available_gb=4.5,
        gpu_vram_total_gb=8.0,
        gpu_vram_available_gb=4.0,
        gpu_type=GpuType.NVIDIA,
    )
    await write(record, heartbeat(1, resource_metrics=sent))
    found = await record.capacity.get(agent_id(1), seen_since_ms=START_MS)
    assert found is not None
    assert {name: getattr(found, name) for name in sent.__struct_fields__} == {
        name: getattr(sent, name) for name in sent.__struct_fields__
    }
    assert (found.status, found.timestamp) == (AgentStatus.ONLINE, moment(10))


async def test_one_agent_without_metrics_reads_zeros(record: Record) -> None:
    await write(
        record, heartbeat(1, resource_metrics=None), heartbeat(2, resource_metrics=metrics(cpu_percent=1.0))
    )
    none = await record.capacity.get(agent_id(1), seen_since_ms=START_MS)
    some = await record.capacity.get(agent_id(2), seen_since_ms=START_MS)
    assert none is not None
    assert some is not None
    assert (none.cpu_cores_available, none.gpu_type) == (0, GpuType.NONE)
    assert (some.cpu_cores_available, some.gpu_type) == (1, GpuType.NONE)


async def test_one_agent_that_is_silent_reads_offline(record: Record) -> None:
    await write(record, heartbeat(1, status=AgentStatus.BUSY))
    for since_ms, status in [(10_000, AgentStatus.BUSY), (10_001, AgentStatus.OFFLINE)]:
        found = await record.capacity.get(agent_id(1), seen_since_ms=START_MS + since_ms)
        assert found is not None
        assert found.status is status


async def test_a_forgotten_agent_is_unknown(record: Record) -> None:
    await write(record, heartbeat(1))
    assert await record.agents.forget(agent_id(1), position=None)
    assert await record.capacity.get(agent_id(1), seen_since_ms=START_MS) is None
    assert await find(record) == []


async def test_a_lent_session_or_connection_is_used_and_left_open(record: Record, record_url: str) -> None:
    await write(record, heartbeat(1))
    engine = create_async_engine(record_url)  # the caller's own, without any of our options
    async with AsyncSession(engine) as session, engine.connect() as connection:
        for lent in (session, connection):
            page = await record.capacity.find(CapacityQuery(), seen_since_ms=START_MS, session=lent)
            one = await record.capacity.get(agent_id(1), seen_since_ms=START_MS, session=lent)
            assert await record.capacity.newest_heartbeat(session=lent) == stream_id(10)
            assert [found.agent_id for found in page.agents] == [agent_id(1)]
            assert one is not None
            assert one.gpu_type is GpuType.NVIDIA
            assert await lent.scalar(text("SELECT 1")) == 1
    await engine.dispose()


async def test_another_object_lent_as_a_session_is_a_mistake(record: Record) -> None:
    with pytest.raises(TypeError, match="AsyncSession"):
        await record.capacity.find(CapacityQuery(), seen_since_ms=0, session=object())


async def test_a_lent_session_of_a_database_that_is_away(record: Record) -> None:
    engine = create_async_engine(f"postgresql+asyncpg://postgres@127.0.0.1:{free_port()}/postgres")
    async with AsyncSession(engine) as session:
        with pytest.raises(RecordUnavailableError):
            await record.capacity.find(CapacityQuery(), seen_since_ms=0, session=session)
    await engine.dispose()


async def test_the_search_reads_the_index_in_order(record: Record, record_url: str) -> None:
    """No sort, and no scan of the whole table, however many agents there are."""
    await write(record, *(heartbeat(n, vram=float(n % 40), cores=n % 64) for n in range(3000)))
    statements: list[str] = []
    query = CapacityQuery(
        min_gpu_vram_gb=8.0, min_cpu_cores=8, limit=10, gpu_type=GpuType.NVIDIA, after=Cursor(30.0, agent_id(9))
    )
    engine = record.database._engine.sync_engine

    def explain(*call: Any) -> None:
        statements.append(call[2])

    async with record.database.writing() as connection:
        await connection.execute(text("ANALYZE"))
    event.listen(engine, "before_cursor_execute", explain)
    await record.capacity.find(query, seen_since_ms=START_MS)
    event.remove(engine, "before_cursor_execute", explain)
    (search,) = [each for each in statements if "ORDER BY" in each]
    plan = await explained(record, search, postgres=record_url.startswith("postgresql"))
    assert "agent_registry_placeable_idx" in plan
    assert "Sort" not in plan
    assert "TEMP B-TREE" not in plan


async def explained(record: Record, search: str, *, postgres: bool) -> str:
    """The plan with placeholders replaced by the values of the test above."""
    values = ["'desktop'", "8.0", "8", str(START_MS), str(START_MS), "'nvidia'", "30.0", f"'{agent_id(9)}'", "11"]
    if postgres:
        for number in range(len(values), 0, -1):
            search = search.replace(f"${number}", values[number - 1])
    else:
        pieces = search.split("?")
        values += ["0"] * (len(pieces) - 1 - len(values))
        search = "".join(piece + value for piece, value in zip(pieces, [*values, ""], strict=True))
    async with record.database.reading() as connection:
        rows = await connection.execute(
            text(("EXPLAIN " if postgres else "EXPLAIN QUERY PLAN ") + search.replace(":", r"\:"))
        )
        return "\n".join(str(row[-1]) for row in rows)
