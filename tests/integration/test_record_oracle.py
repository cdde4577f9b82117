"""The record against a plain in-memory fold, over random logs, batch splits, redeliveries and searches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete

from app.models.agent import AgentFilter
from app.models.capacity import AgentStatus, AvailableCapacity, CapacityQuery, GpuType, Resources
from app.models.heartbeat import Gpu, Heartbeat, ResourceMetrics
from app.models.identity import AgentId, StreamId
from app.models.log import LogEntry
from app.models.order import Boot, Order, Outcome, advance
from app.models.transition import Reason, Transition, TransitionKind
from app.record import Record
from app.record.rows import moment
from app.record.tables import metadata
from tests.indexing import agent_id
from tests.integration.conftest import OpenRecord
from tests.logs import START_MS

OFFLINE_AFTER_S = 90.0
SLOT_S = 60

AGENTS = st.integers(0, 5).map(agent_id)
SENT_METRICS = st.builds(
    ResourceMetrics,
    gpu_vram_available_gb=st.sampled_from([None, 0.0, 4.0, 0.1 + 0.2, 8.0]),
    cpu_cores_available=st.sampled_from([None, 0, 1, 2, 9]),
    memory_available_gb=st.sampled_from([None, 0.0, 4.5]),
    gpu_type=st.sampled_from([None, *GpuType]),
    cpu_load_1min=st.sampled_from([None, 1e-9, 2.5]),
)
METRICS = st.sampled_from([SENT_METRICS] * 6 + [st.none(), st.builds(ResourceMetrics)]).flatmap(lambda each: each)
BOOTS = st.one_of(st.none(), st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(0, 6)))


WAITS_MS = st.sampled_from([0, 0, 0, 1, 1, 1, *[500] * 10, 20_000, 59_999, 60_000, 95_000])

# What agents say. Few and often said again: a repeated heartbeat takes a way of its own through the writer.
SAYINGS = st.builds(
    Heartbeat,
    agent_id=st.just(agent_id(0)),
    agent_type=st.sampled_from(["desktop", "desktop", "desktop", "infra"]),
    pool_name=st.sampled_from(["default", "default", "a b"]),
    hostname=st.sampled_from(["", "höst"]),
    status=st.sampled_from([AgentStatus.ONLINE] * 8 + [AgentStatus.BUSY, AgentStatus.OFFLINE]),
    gpus=st.sampled_from([(), (), (Gpu(index=0, name="A"),)]),
    resource_metrics=METRICS,
)


@st.composite
def heartbeats(draw: st.DrawFn, sayings: Sequence[Heartbeat]) -> Heartbeat:
    boot_id, seq = draw(BOOTS) or (None, None)
    said = draw(st.sampled_from(sayings))
    return msgspec.structs.replace(said, agent_id=draw(AGENTS), boot_id=boot_id, seq=seq)


@st.composite
def logs(draw: st.DrawFn) -> list[LogEntry]:
    entries: list[LogEntry] = []
    seen: dict[AgentId, list[StreamId]] = {}
    ms, n = START_MS, 0
    sayings = draw(st.lists(SAYINGS, min_size=1, max_size=4))
    for _ in range(draw(st.integers(1, 60))):
        waited_ms = draw(WAITS_MS)
        ms, n = (ms + waited_ms, 0) if waited_ms else (ms, n + 1)
        here = StreamId(ms, n)
        what = draw(st.sampled_from(["heartbeat"] * 16 + ["silent", "silent", "forgotten", "said", "broken"]))
        if what == "heartbeat":
            heartbeat = draw(heartbeats(sayings))
            seen.setdefault(heartbeat.agent_id, []).append(here)
            entries.append(LogEntry(here, heartbeat))
        elif what == "broken":
            entries.append(LogEntry(here, None, "broken"))
        else:
            about = draw(AGENTS)
            kind, reason, position = TransitionKind.FORGOTTEN, Reason.OPERATOR, here
            if what == "silent":
                kind, reason = TransitionKind.OFFLINE, Reason.SILENT
            elif what == "said":
                kind, reason = (
                    draw(st.sampled_from([TransitionKind.ONLINE, TransitionKind.BUSY])),
                    Reason.HEARTBEAT,
                )
            if kind is not TransitionKind.FORGOTTEN:
                position = draw(st.sampled_from(seen.get(about, [here])))
            entries.append(
                LogEntry(here, Transition(agent_id=about, kind=kind, reason=reason, position=position, at_ms=ms))
            )
    return entries


@dataclass
class Known:
    """What is remembered of one agent."""

    order: Order
    registered_ms: int
    heartbeat: Heartbeat
    heartbeat_ms: int
    metrics: ResourceMetrics | None
    gpus: tuple[Gpu, ...]
    status: AgentStatus
    forgotten: bool = False
    samples: dict[int, tuple[int, AgentStatus, ResourceMetrics | None]] = field(default_factory=dict)


@dataclass
class Oracle:
    agents: dict[AgentId, Known] = field(default_factory=dict)
    events: dict[AgentId, list[tuple[int, str | None, str]]] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)

    def take(self, entry: LogEntry) -> None:
        if isinstance(entry.body, Heartbeat):
            self._hear(entry.stream_id, entry.body)
        elif isinstance(entry.body, Transition):
            self._change(entry.body)

    def _hear(self, stream_id: StreamId, sent: Heartbeat) -> None:
        known = self.agents.get(sent.agent_id)
        boot = None if sent.boot_id is None or sent.seq is None else Boot(sent.boot_id, sent.seq)
        outcome, order = advance(
            None if known is None else known.order, stream_id, boot, offline_after_ms=round(OFFLINE_AFTER_S * 1000)
        )
        self.outcomes.append(outcome)
        if outcome is not Outcome.APPLIED:
            if known is not None:
                known.order = order
            return
        metrics, gpus = sent.metrics, sent.gpus
        if known is None or known.forgotten:
            known = self.agents[sent.agent_id] = Known(
                order, stream_id.ms, sent, stream_id.ms, metrics, gpus, sent.status
            )
        elif sent.status is AgentStatus.OFFLINE and metrics is None:
            metrics, gpus = known.metrics, gpus or known.gpus
        known.order, known.heartbeat, known.heartbeat_ms = order, sent, stream_id.ms
        known.metrics, known.gpus, known.status = metrics, gpus, sent.status
        known.samples[stream_id.ms // (SLOT_S * 1000)] = (stream_id.ms, sent.status, metrics)

    def _change(self, change: Transition) -> None:
        chain = self.events.setdefault(change.agent_id, [])
        before = chain[-1][2] if chain else None
        if before != change.kind:
            chain.append((change.at_ms, before, change.kind))
        known = self.agents.get(change.agent_id)
        if known is None or known.order.last_id > change.position:
            return
        if change.kind is TransitionKind.OFFLINE:
            known.status = AgentStatus.OFFLINE
        elif change.kind is TransitionKind.FORGOTTEN:
            known.order, known.forgotten, known.status = Order(last_id=change.position), True, AgentStatus.OFFLINE

    def search(self, query: CapacityQuery, now_ms: int) -> list[AvailableCapacity]:
        oldest_ms = now_ms - round(OFFLINE_AFTER_S * 1000)
        found = []
        for agent, known in self.agents.items():
            free = Resources.of(known.metrics)
            if (
                known.status is AgentStatus.ONLINE
                and known.metrics is not None
                and known.heartbeat_ms >= oldest_ms
                and (query.max_age_s is None or known.heartbeat_ms >= now_ms - query.max_age_s * 1000)
                and known.heartbeat.agent_type == query.agent_type
                and query.pool_name in (None, known.heartbeat.pool_name)
                and query.gpu_type in (None, free.gpu_type)
                and free.gpu_vram_available_gb >= query.min_gpu_vram_gb
                and free.cpu_cores_available >= query.min_cpu_cores
                and free.memory_available_gb >= query.min_memory_gb
            ):
                found.append((free.gpu_vram_available_gb, agent))
        ordered = sorted(found, reverse=True)
        if query.after is not None:
            last = (query.after.gpu_vram_available_gb, query.after.agent_id)
            ordered = [each for each in ordered if each < last]
        return [self._row(agent) for _, agent in ordered]

    def _row(self, agent: AgentId) -> AvailableCapacity:
        known = self.agents[agent]
        free = Resources.of(known.metrics)
        return AvailableCapacity(
            agent_id=agent,
            agent_type=known.heartbeat.agent_type,
            pool_name=known.heartbeat.pool_name,
            status=known.status,
            gpu_vram_available_gb=free.gpu_vram_available_gb,
            cpu_cores_available=free.cpu_cores_available,
            cpu_load_1min=free.cpu_load_1min,
            last_heartbeat_at=moment(known.heartbeat_ms),
        )


@pytest.fixture
def record(open_another: OpenRecord) -> Record:
    return open_another(offline_after_s=OFFLINE_AFTER_S, history_every_s=SLOT_S)


async def emptied(record: Record) -> None:
    async with record.database.writing() as connection:
        for table in metadata.sorted_tables:
            await connection.execute(delete(table))


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[list[LogEntry], list[list[LogEntry]]]:
    """A log, and the batches in which it arrives: in order, but parts of it more than once and shuffled inside."""
    log = draw(logs())
    batches: list[list[LogEntry]] = []
    done = 0
    while done < len(log):
        size = draw(st.integers(1, 12))
        again = draw(st.integers(0, done))
        batch = [*log[again : again + draw(st.integers(0, 6))], *log[done : done + size]]
        unique = {entry.stream_id: entry for entry in batch}
        batches.append(draw(st.permutations(list(unique.values()))))
        done += size
    return log, batches


# At most one filter besides the limit: what several of them leave over is mostly nothing.
FILTERS = st.one_of(
    st.just({}),
    st.just({}),
    st.fixed_dictionaries({"min_gpu_vram_gb": st.sampled_from([0.1 + 0.2, 4.0, 8.0, 8.5])}),
    st.fixed_dictionaries({"min_cpu_cores": st.sampled_from([2, 9, 10])}),
    st.fixed_dictionaries({"pool_name": st.just("a b")}),
    st.fixed_dictionaries({"gpu_type": st.sampled_from(GpuType)}),
    st.fixed_dictionaries({"min_memory_gb": st.just(4.5)}),
    st.fixed_dictionaries({"max_age_s": st.sampled_from([0.0, 0.5, 30.0])}),
    st.just({"agent_type": "infra"}),
)
QUERIES = st.builds(
    lambda wanted, limit: CapacityQuery(**wanted, limit=limit), FILTERS, st.sampled_from([1, 2, 3, 100])
)


@settings(
    max_examples=60,
    deadline=None,
    # The record is the same for all examples; each empties it.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(delivered=deliveries(), queries=st.lists(QUERIES, min_size=1, max_size=4))
async def test_batches_equal_a_plain_fold(
    record: Record,
    delivered: tuple[list[LogEntry], list[list[LogEntry]]],
    queries: Sequence[CapacityQuery],
) -> None:
    await emptied(record)
    log, batches = delivered
    oracle = Oracle()
    for entry in log:
        oracle.take(entry)
    written = [await record.writer.write(batch) for batch in batches]

    assert sum(batch.applied for batch in written) == oracle.outcomes.count(Outcome.APPLIED)
    assert sum(batch.transitions for batch in written) == sum(map(len, oracle.events.values()))
    assert await record.reader.greatest_position() == log[-1].stream_id
    await same_agents(record, oracle)
    await same_histories(record, oracle)
    now_ms = log[-1].stream_id.ms
    for query in queries:
        await same_searches(record, oracle, query, now_ms)


@st.composite
def fleets(draw: st.DrawFn) -> list[LogEntry]:
    """Up to 30 agents that reported once, mostly within the last two minutes."""
    heard = draw(st.lists(st.tuples(SAYINGS, st.integers(0, 120)), min_size=1, max_size=30))
    heard.sort(key=lambda each: each[1])
    return [
        LogEntry(StreamId(START_MS + at_s * 1000, n), msgspec.structs.replace(said, agent_id=agent_id(n * 7 % 30)))
        for n, (said, at_s) in enumerate(heard)
    ]


@settings(
    max_examples=60,
    deadline=None,
    # The record is the same for all examples; each empties it.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(fleet=fleets(), queries=st.lists(QUERIES, min_size=1, max_size=4))
async def test_searches_equal_a_plain_filter(
    record: Record, fleet: list[LogEntry], queries: Sequence[CapacityQuery]
) -> None:
    await emptied(record)
    await record.writer.write(fleet)
    oracle = Oracle()
    for entry in fleet:
        oracle.take(entry)
    for query in (CapacityQuery(limit=3), *queries):
        await same_searches(record, oracle, query, fleet[-1].stream_id.ms)


async def same_agents(record: Record, oracle: Oracle) -> None:
    present = {agent: known for agent, known in sorted(oracle.agents.items()) if not known.forgotten}
    states = [state async for page in record.reader.states(page_size=2) for state in page]
    assert [state.agent.agent_id for state in states] == list(present)
    for state, known in zip(states, present.values(), strict=True):
        assert state.order == known.order
        agent = state.agent
        assert (agent.status, agent.resource_metrics, agent.gpus) == (known.status, known.metrics, known.gpus)
        assert (agent.agent_type, agent.pool_name, agent.hostname) == (
            known.heartbeat.agent_type,
            known.heartbeat.pool_name,
            known.heartbeat.hostname,
        )
        assert agent.last_heartbeat_at == moment(known.heartbeat_ms)
        assert agent.registered_at == moment(known.registered_ms)
    listed = await record.agents.list_agents(AgentFilter())
    assert listed.agents == [state.agent for state in states]


async def same_histories(record: Record, oracle: Oracle) -> None:
    for agent, known in oracle.agents.items():
        history = await record.agents.history(agent, limit=100)
        if known.forgotten:
            assert history is None
            continue
        assert history is not None
        assert [(sample.at, sample.status, sample.resources) for sample in history.samples] == [
            (moment(ms), status, Resources.of(metrics))
            for _, (ms, status, metrics) in sorted(known.samples.items(), reverse=True)
        ]
        assert [(event.at, event.from_status, event.to_status) for event in history.events] == [
            (moment(ms), before, after) for ms, before, after in reversed(oracle.events.get(agent, []))
        ]


async def same_searches(record: Record, oracle: Oracle, query: CapacityQuery, now_ms: int) -> None:
    """Page by page, to the end."""
    seen_since_ms = now_ms - round(OFFLINE_AFTER_S * 1000)
    total = len(oracle.search(query, now_ms)) if query.counted else None
    while True:
        expected = oracle.search(query, now_ms)
        page = await record.capacity.find(query, seen_since_ms=seen_since_ms)
        assert page.agents == expected[: query.limit]
        assert page.more == (len(expected) > query.limit)
        assert page.total == total
        if page.cursor is None:
            return
        query = msgspec.structs.replace(query, after=page.cursor)
