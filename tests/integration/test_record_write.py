"""Batches of log entries in the record, on SQLite and Postgres."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import select, text

from app.errors import RecordUnavailableError
from app.models.agent import AgentFilter, RegisteredAgent
from app.models.capacity import AgentStatus, GpuType
from app.models.heartbeat import Gpu, Heartbeat, ResourceMetrics
from app.models.identity import AgentId, StreamId
from app.models.log import LogEntry
from app.models.order import Boot, Order, Outcome
from app.models.transition import Reason, TransitionKind
from app.record import Record
from app.record.tables import agent_events, agent_history, agent_registry
from tests.indexing import agent_id, heartbeat
from tests.integration.conftest import OpenRecord
from tests.logs import START_MS, beat, change, moment, silence, stream_id

GPU = Gpu(index=0, uuid="GPU-1", name="A", vram_total_gb=24.0, vram_available_gb=8.0)


async def agent(record: Record, number: int = 1) -> RegisteredAgent:
    found = await record.agents.agent(agent_id(number))
    assert found is not None
    return found


async def order(record: Record) -> Order:
    (page,) = [page async for page in record.reader.states(page_size=10)]
    (state,) = page
    return state.order


async def test_a_first_heartbeat_registers_the_agent(record: Record) -> None:
    sent = heartbeat(1, hostname="höst", pool_name="a b", agent_type="infra", seq=7, boot_id="b", gpus=(GPU,))
    batch = await record.writer.write([beat(0, sent)])
    assert (batch.applied, batch.ignored, batch.transitions, batch.rejected) == (1, 0, 0, ())
    assert await agent(record) == RegisteredAgent(
        agent_id=agent_id(1),
        agent_type="infra",
        pool_name="a b",
        hostname="höst",
        status=AgentStatus.ONLINE,
        last_heartbeat_at=moment(0),
        registered_at=moment(0),
        boot_id="b",
        seq=7,
        gpus=(GPU,),
        resource_metrics=sent.resource_metrics,
    )


async def test_the_newest_heartbeat_of_a_batch_is_kept(record: Record) -> None:
    """The same agent twice in one upsert would be refused by Postgres (21000)."""
    await record.writer.write([beat(3, heartbeat(1, vram=3.0)), beat(1, heartbeat(1, vram=1.0))])
    batch = await record.writer.write([beat(5, heartbeat(1, vram=5.0)), beat(4, heartbeat(1, vram=4.0))])
    assert batch.applied == 2
    found = await agent(record)
    assert found.resource_metrics is not None
    assert found.resource_metrics.gpu_vram_available_gb == 5.0
    assert (found.registered_at, found.last_heartbeat_at) == (moment(1), moment(5))


async def test_an_unchanged_heartbeat_refreshes_time_and_order_only(record: Record) -> None:
    await record.writer.write([beat(0, heartbeat(1, seq=1))])
    before = await agent(record)
    await record.writer.write([beat(30, heartbeat(1, seq=2), n=4)])
    after = await agent(record)
    assert (after.last_heartbeat_at, after.seq, after.registered_at) == (moment(30), 2, moment(0))
    assert after.resource_metrics == before.resource_metrics
    assert await order(record) == Order(last_id=stream_id(30, 4), holder=Boot("boot", 2))


async def test_duplicates_and_late_heartbeats_change_nothing(record: Record) -> None:
    entries = [beat(0, heartbeat(1, seq=1)), beat(30, heartbeat(1, vram=2.0, seq=2))]
    await record.writer.write(entries)
    before = await agent(record)
    batch = await record.writer.write([*entries, beat(60, heartbeat(1, vram=9.0, seq=1))])
    assert dict(batch.outcomes) == {Outcome.REORDERED: 2, Outcome.DUPLICATE: 1}
    assert (batch.applied, batch.ignored) == (0, 3)
    assert await agent(record) == before


async def test_boots_are_remembered(record: Record) -> None:
    await record.writer.write([beat(n, heartbeat(1, seq=5, boot_id=f"b{n}")) for n in range(10)])
    kept = await order(record)
    assert kept.holder == Boot("b9", 5)
    assert kept.retired == tuple(Boot(f"b{n}", 5) for n in range(8, 1, -1))
    batch = await record.writer.write([beat(10, heartbeat(1, vram=1.0, seq=6, boot_id="b4"))])
    assert batch.outcomes == {Outcome.CLONED: 1}


async def test_a_goodbye_keeps_the_last_metrics(record: Record) -> None:
    await record.writer.write([beat(0, heartbeat(1, vram=4.0, gpus=(GPU,)))])
    await record.writer.write([beat(1, Heartbeat(agent_id=agent_id(1), status=AgentStatus.OFFLINE))])
    found = await agent(record)
    assert found.status is AgentStatus.OFFLINE
    assert found.resource_metrics is not None
    assert found.resource_metrics.gpu_vram_available_gb == 4.0
    assert found.gpus == (GPU,)


async def test_a_heartbeat_without_metrics_clears_them(record: Record) -> None:
    await record.writer.write([beat(0, heartbeat(1, gpus=(GPU,)))])
    await record.writer.write([beat(1, heartbeat(1, resource_metrics=ResourceMetrics()))])
    found = await agent(record)
    assert (found.resource_metrics, found.gpus, found.status) == (None, (), AgentStatus.ONLINE)


async def test_silence_makes_offline_unless_something_newer_was_heard(record: Record) -> None:
    await record.writer.write([beat(0, heartbeat(1)), beat(0, heartbeat(2)), beat(50, heartbeat(2))])
    await record.writer.write([silence(91, 1, after_s=0), silence(91, 2, after_s=0, n=2)])
    assert (await agent(record, 1)).status is AgentStatus.OFFLINE
    assert (await agent(record, 2)).status is AgentStatus.ONLINE
    await record.writer.write([beat(120, heartbeat(1))])
    assert (await agent(record, 1)).status is AgentStatus.ONLINE


async def test_a_heartbeat_recorded_after_the_silence_that_followed_it_stays_offline(record: Record) -> None:
    """A recorder that died may leave a heartbeat behind that another takes over later."""
    await record.writer.write([beat(0, heartbeat(1))])
    await record.writer.write([silence(121, 1, after_s=30)])
    await record.writer.write([beat(30, heartbeat(1, vram=1.0))])
    found = await agent(record)
    assert (found.status, found.last_heartbeat_at) == (AgentStatus.OFFLINE, moment(30))


async def test_an_agent_that_is_declared_offline_again_and_again_comes_back(record: Record) -> None:
    """In a batch that begins and ends with it offline, by another heartbeat each time."""
    await record.writer.write([beat(0, heartbeat(1)), silence(91, 1, after_s=0)])
    await record.writer.write([beat(100, heartbeat(1)), silence(191, 1, after_s=100)])
    assert (await agent(record, 1)).status is AgentStatus.OFFLINE
    await record.writer.write([beat(200, heartbeat(1))])
    assert (await agent(record, 1)).status is AgentStatus.ONLINE


async def test_events_form_a_chain(record: Record) -> None:
    batch = await record.writer.write(
        [
            beat(0, heartbeat(1)),
            change(0, 1, TransitionKind.ONLINE),
            silence(91, 1, after_s=0),
        ]
    )
    assert batch.transitions == 2
    batch = await record.writer.write(
        [
            silence(91, 1, after_s=0),
            beat(95, heartbeat(1, status=AgentStatus.BUSY)),
            change(95, 1, TransitionKind.BUSY),
        ]
    )
    assert batch.transitions == 1
    history = await record.agents.history(agent_id(1), limit=10)
    assert history is not None
    assert [(event.at, event.from_status, event.to_status, event.reason) for event in history.events] == [
        (moment(95), TransitionKind.OFFLINE, TransitionKind.BUSY, Reason.HEARTBEAT),
        (moment(91), TransitionKind.ONLINE, TransitionKind.OFFLINE, Reason.SILENT),
        (moment(0), None, TransitionKind.ONLINE, Reason.HEARTBEAT),
    ]


async def test_a_status_learned_again_is_no_event(record: Record) -> None:
    """After a FLUSHALL the index meets every agent for the first time."""
    await record.writer.write([beat(0, heartbeat(1)), change(0, 1, TransitionKind.ONLINE)])
    batch = await record.writer.write([beat(30, heartbeat(1)), change(30, 1, TransitionKind.ONLINE)])
    assert batch.transitions == 0
    history = await record.agents.history(agent_id(1), limit=10)
    assert history is not None
    assert [event.at for event in history.events] == [moment(0)]


async def test_a_late_transition_is_put_where_it_belongs(record: Record) -> None:
    await record.writer.write([change(0, 1, TransitionKind.ONLINE), change(20, 1, TransitionKind.ONLINE)])
    await record.writer.write([beat(0, heartbeat(1)), change(10, 1, TransitionKind.OFFLINE)])
    history = await record.agents.history(agent_id(1), limit=10)
    assert history is not None
    assert [(event.at, event.from_status) for event in history.events] == [
        (moment(20), TransitionKind.OFFLINE),
        (moment(10), TransitionKind.ONLINE),
        (moment(0), None),
    ]


async def test_history_keeps_the_newest_heartbeat_of_each_slot(open_another: OpenRecord) -> None:
    record = open_another(history_every_s=60)
    for at_s in (0, 30, 59, 60, 61, 240):
        await record.writer.write([beat(at_s, heartbeat(1, vram=float(at_s)))])
    await record.writer.write([beat(at_s, heartbeat(1, vram=float(at_s))) for at_s in (250, 300, 359, 361)])
    history = await record.agents.history(agent_id(1), limit=10)
    assert history is not None
    kept = [(sample.at, sample.resources.gpu_vram_available_gb) for sample in history.samples]
    assert kept == [(moment(at_s), float(at_s)) for at_s in (361, 359, 250, 61, 59)]
    fewer = await record.agents.history(agent_id(1), limit=2)
    assert fewer is not None
    assert fewer.samples == history.samples[:2]


async def test_a_sample_tells_what_the_heartbeat_said_not_what_silence_made_of_it(
    open_another: OpenRecord,
) -> None:
    record = open_another(history_every_s=60)
    await record.writer.write([beat(0, heartbeat(1)), silence(91, 1, after_s=0), beat(200, heartbeat(1))])
    history = await record.agents.history(agent_id(1), limit=10)
    assert history is not None
    assert [sample.status for sample in history.samples] == [AgentStatus.ONLINE, AgentStatus.ONLINE]


async def test_a_forgotten_agent_is_hidden_and_its_samples_are_deleted(open_another: OpenRecord) -> None:
    record = open_another(history_every_s=1)
    await record.writer.write([beat(at_s, heartbeat(1, seq=at_s)) for at_s in range(1, 4)])
    batch = await record.writer.write([change(4, 1, TransitionKind.FORGOTTEN, reason=Reason.OPERATOR)])
    assert batch.transitions == 1
    assert await record.agents.agent(agent_id(1)) is None
    assert await record.agents.history(agent_id(1), limit=10) is None
    assert [page async for page in record.reader.states(page_size=10)] == []
    async with record.database.reading() as connection:
        assert (await connection.execute(select(agent_history))).all() == []

    late = await record.writer.write([beat(3.5, heartbeat(1, seq=9))])
    assert (late.applied, await record.agents.agent(agent_id(1))) == (0, None)

    await record.writer.write([beat(5, heartbeat(1, seq=1))])
    revived = await agent(record)
    assert (revived.registered_at, revived.seq, revived.status) == (moment(5), 1, AgentStatus.ONLINE)
    history = await record.agents.history(agent_id(1), limit=10)
    assert history is not None
    assert [sample.at for sample in history.samples] == [moment(5)]
    assert history.events[0].to_status is TransitionKind.FORGOTTEN


async def test_a_heartbeat_after_forgetting_wins_within_one_batch(record: Record) -> None:
    await record.writer.write([beat(0, heartbeat(1))])
    await record.writer.write(
        [change(1, 1, TransitionKind.FORGOTTEN), beat(2, heartbeat(1)), change(2, 1, TransitionKind.ONLINE)]
    )
    assert (await agent(record)).registered_at == moment(2)
    await record.writer.write([change(1, 1, TransitionKind.FORGOTTEN)])
    assert (await agent(record)).status is AgentStatus.ONLINE


async def test_a_transition_of_an_unknown_agent_is_kept_as_an_event_only(record: Record) -> None:
    batch = await record.writer.write([silence(91, 1, after_s=0)])
    assert batch.transitions == 1
    assert await record.agents.agent(agent_id(1)) is None


async def test_undecodable_entries_are_skipped_but_their_position_counts(record: Record) -> None:
    assert await record.reader.greatest_position() is None
    assert await record.capacity.newest_heartbeat() is None
    await record.writer.write([beat(1, heartbeat(1)), LogEntry(stream_id(9, 3), None, "broken")])
    assert await record.reader.greatest_position() == stream_id(9, 3)
    assert await record.capacity.newest_heartbeat() == stream_id(1)
    await record.writer.write([beat(2, heartbeat(1))])
    assert await record.reader.greatest_position() == stream_id(9, 3)
    assert await record.capacity.newest_heartbeat() == stream_id(2)
    await record.writer.write([beat(2, heartbeat(1), n=4)])
    assert await record.capacity.newest_heartbeat() == stream_id(2, 4)


async def test_an_empty_batch_is_harmless(record: Record) -> None:
    batch = await record.writer.write([])
    assert (batch.applied, batch.ignored, batch.transitions, batch.rejected) == (0, 0, 0, ())


@pytest.mark.parametrize(
    "poison",
    [
        beat(5, heartbeat(99, cores=2**31)),
        beat(5, heartbeat(99, seq=2**63)),
        LogEntry(StreamId(2**63, 0), heartbeat(99)),
        LogEntry(StreamId(253_402_300_800_000, 0), heartbeat(99)),
        beat(5, heartbeat(99, hostname="\ud800")),
    ],
    ids=["cores", "seq", "position", "year-10000", "surrogate"],
)
async def test_one_bad_row_is_set_aside_and_the_rest_is_written(
    record: Record, record_url: str, poison: LogEntry
) -> None:
    if record_url.startswith("sqlite") and isinstance(poison.body, Heartbeat) and poison.body.resource_metrics:
        cores = poison.body.resource_metrics.cpu_cores_available
        if cores is not None and cores > 2**31 - 1:
            return  # SQLite's integers have no 32-bit limit
    good = [beat(number, heartbeat(number)) for number in range(1, 8)]
    batch = await record.writer.write([*good[:4], poison, *good[4:]])
    assert [stream_id for stream_id, _ in batch.rejected] == [poison.stream_id]
    assert batch.applied == 7
    assert [found.agent_id for found in (await record.agents.list_agents(AgentFilter())).agents] == [
        agent_id(number) for number in range(1, 8)
    ]


async def test_rows_that_somebody_spoiled_are_written_anew(record: Record) -> None:
    await record.writer.write([beat(0, heartbeat(1, seq=1)), beat(0, heartbeat(2, seq=1), n=1)])
    async with record.database.writing() as connection:
        await connection.execute(
            text("""UPDATE agent_registry SET resource_metrics = '{"cpu_percent": "x"}', retired_boots = '7',
                    reported_status = 'odd', status = 'odd'""")
        )
    found = await agent(record)
    assert (found.resource_metrics, found.status) == (None, AgentStatus.OFFLINE)
    await record.writer.write([beat(30, heartbeat(1, seq=2)), silence(91, 2, after_s=0)])
    mended = await agent(record)
    assert (mended.status, mended.resource_metrics) == (AgentStatus.ONLINE, heartbeat(1).resource_metrics)
    assert (await agent(record, 2)).status is AgentStatus.OFFLINE


async def test_recorders_side_by_side_lose_nothing(open_another: OpenRecord) -> None:
    """Both meet the same new agents at once, in opposite orders."""
    recorders = [open_another() for _ in range(3)]
    numbers = range(40)
    for start_s in (0, 100):
        batches = [
            [beat(start_s + lane, heartbeat(number, vram=float(lane), seq=start_s + lane), n=number)
             for number in (numbers if lane % 2 else reversed(numbers))]
            for lane in range(3)
        ]  # fmt: skip
        await asyncio.gather(
            *(recorder.writer.write(batch) for recorder, batch in zip(recorders, batches, strict=True))
        )
    found = (await recorders[0].agents.list_agents(AgentFilter())).agents
    assert {(each.last_heartbeat_at, each.seq) for each in found} == {(moment(102), 102)}
    assert len(found) == len(numbers)


async def test_old_history_and_events_are_deleted_by_the_logs_own_time(open_another: OpenRecord) -> None:
    day_s = 86_400
    record = open_another(history_every_s=3600, history_keep_d=1, events_keep_d=2)
    for at_s in range(0, 3 * day_s + 1, 7200):
        kind = TransitionKind.BUSY if at_s % 14_400 else TransitionKind.ONLINE
        await record.writer.write([beat(at_s, heartbeat(1)), change(at_s, 1, kind)])
    assert await record.writer.thin() == 24 + 12
    assert await record.writer.thin() == 0
    async with record.database.reading() as connection:
        slots = (await connection.scalars(select(agent_history.c.slot_ms))).all()
        events = (await connection.scalars(select(agent_events.c.entry_ms))).all()
    assert min(slots) == START_MS + 2 * day_s * 1000
    assert min(events) == START_MS + day_s * 1000


async def test_thinning_an_empty_record_does_nothing(record: Record) -> None:
    assert await record.writer.thin() == 0


async def test_thinning_goes_on_slice_by_slice(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.record.writer._THIN_SLICE", 3)
    monkeypatch.setattr("app.record.writer._THIN_SLICES", 2)
    await record.writer.write(
        [beat(number, heartbeat(number)) for number in range(10)]
        + [beat(40 * 86_400, heartbeat(number), n=number) for number in range(10)]
    )
    assert [await record.writer.thin() for _ in range(3)] == [6, 4, 0]


async def test_columns_are_readable_with_plain_sql(record: Record, record_url: str) -> None:
    await record.writer.write([beat(0.123, heartbeat(1, vram=4.5, cores=3))])
    columns = agent_registry.c
    wanted = select(
        columns.agent_id, columns.gpu_vram_available_gb, columns.cpu_cores_available, columns.last_heartbeat_at
    )
    async with record.database.reading() as connection:
        row: Any = (await connection.execute(wanted)).one()
        metrics = (
            "resource_metrics->>'gpu_type'"
            if record_url.startswith("postgresql")
            else "json_extract(resource_metrics, '$.gpu_type')"
        )
        assert await connection.scalar(text(f"SELECT {metrics} FROM agent_registry")) == GpuType.NVIDIA
    assert tuple(row) == (AgentId(agent_id(1)), 4.5, 3, moment(0.123))


async def test_a_missing_table_is_a_loud_bug_not_an_outage(record: Record) -> None:
    async with record.database.writing() as connection:
        await connection.execute(text("DROP TABLE agent_registry"))
    with pytest.raises(Exception, match="agent_registry") as caught:
        await record.writer.write([beat(0, heartbeat(1))])
    assert not isinstance(caught.value, RecordUnavailableError)
