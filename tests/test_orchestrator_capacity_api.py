"""The two capacity endpoints and the two methods behind them.

Every case runs on fakeredis and on a real Valkey. Cases of the fallback run on SQLite and on Postgres as well.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock
from uuid import UUID

import fakeredis
import msgspec
import pytest
import redis.asyncio as aredis
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from app.errors import (
    AgentNotFoundError,
    CapacityUnknownError,
    IndexUnavailableError,
    InvalidAgentIdError,
    InvalidQueryError,
)
from app.index.clock import ManualClock
from app.index.connect import command, connect
from app.index.opening import Index
from app.models.capacity import AgentStatus, GpuType
from app.models.heartbeat import Heartbeat, ResourceMetrics
from app.record import migrate, open_record
from app.record.tables import agent_registry
from app.service.orchestrator import OrchestratorService
from app.service.ports import CapacityIndex
from app.settings import Settings
from tests.indexing import agent_id, heartbeat
from tests.servers import PostgresServer, ValkeyServer, free_port
from tests.stack import SEARCH, Stack, numbers

START_MS = 1_800_000_000_000
STARTED_AT = "2027-01-15T08:00:00+00:00"

AGENT_FIELDS = [
    "agent_id",
    "status",
    "cpu_cores_available",
    "cpu_cores_physical",
    "cpu_load_1min",
    "cpu_load_5min",
    "cpu_percent",
    "memory_available_gb",
    "memory_percent",
    "gpu_vram_available_gb",
    "gpu_vram_total_gb",
    "gpu_type",
    "timestamp",
]
ROW_FIELDS = [
    "agent_id",
    "agent_type",
    "pool_name",
    "status",
    "gpu_vram_available_gb",
    "cpu_cores_available",
    "cpu_load_1min",
    "last_heartbeat_at",
]
WHOLE = ResourceMetrics(
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


@pytest.fixture(params=["fakeredis", "valkey"])
def client(request: pytest.FixtureRequest, valkey_server: ValkeyServer) -> aredis.Redis:
    if request.param == "fakeredis":
        return fakeredis.FakeAsyncRedis(decode_responses=False)
    valkey_server.flush()
    return connect(Settings(redis_url=valkey_server.url), purpose="test")


@pytest.fixture(params=["sqlite"])
def record_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """SQLite, unless a test asks for both databases with `on_both_databases`."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'headroom.db'}"
    postgres: PostgresServer = request.getfixturevalue("postgres_server")
    name = postgres.create_database()
    request.addfinalizer(lambda: postgres.drop_database(name))  # noqa: PT021 # only where it was made
    return postgres.database_url(name)


on_both_databases = pytest.mark.parametrize("record_url", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
async def stack(client: aredis.Redis, record_url: str) -> AsyncIterator[Stack]:
    settings = Settings(database_url=record_url)
    clock = ManualClock(START_MS)

    async def run_id(_client: aredis.Redis) -> str:
        return "run"

    await migrate(settings.record_url)
    async with AsyncExitStack() as opened:
        index = Index(settings, client, clock=clock, read_run_id=run_id)
        opened.push_async_callback(index.close)
        record = open_record(settings)
        opened.push_async_callback(record.close)
        await index.upkeep.begin_rebuild("test", None)
        assert await index.upkeep.open_epoch("test")
        yield Stack(index, record, settings, clock)


@pytest.fixture
async def away(stack: Stack) -> AsyncIterator[CapacityIndex]:
    """An index whose server is not there."""
    settings = Settings(redis_url=f"redis://127.0.0.1:{free_port()}")
    index = Index(settings, connect(settings, purpose="test"), clock=stack.clock)
    yield index.capacity
    await index.close()


def index_that(behaviour: Any) -> Any:
    """An index whose every call raises, or awaits, what is given."""
    return AsyncMock(find=AsyncMock(side_effect=behaviour), get=AsyncMock(side_effect=behaviour))


# One agent


async def test_an_agent_shows_every_field_in_order(stack: Stack) -> None:
    await stack.report(heartbeat(1, resource_metrics=WHOLE))

    response = await stack.get(f"/api/v1/agents/{agent_id(1)}/capacity")

    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == AGENT_FIELDS
    assert response.json() == {
        "agent_id": agent_id(1),
        "status": "online",
        "timestamp": STARTED_AT,
        **msgspec.to_builtins(WHOLE),
    }


async def test_the_service_gives_the_same_as_the_endpoint(stack: Stack) -> None:
    await stack.report(heartbeat(1, resource_metrics=WHOLE))

    capacity = await stack.service.get_agent_capacity(UUID(agent_id(1)))
    document = (await stack.get(f"/api/v1/agents/{agent_id(1)}/capacity")).json()

    timestamp = document.pop("timestamp")
    assert capacity.timestamp.isoformat() == timestamp
    assert {name: getattr(capacity, name) for name in document} == document


async def test_amounts_have_a_decimal_point_and_cores_never(stack: Stack) -> None:
    whole_numbers = msgspec.structs.replace(WHOLE, gpu_vram_available_gb=8.0, cpu_load_1min=0.0, cpu_percent=100.0)
    await stack.report(heartbeat(1, resource_metrics=whole_numbers))

    for target in (f"/api/v1/agents/{agent_id(1)}/capacity", SEARCH):
        text = (await stack.get(target)).text
        assert re.findall(r'"[a-z0-9_]+_(?:gb|percent|1min|5min)":(?!\d+\.\d+[,}])', text) == []
        assert re.findall(r'"cpu_cores_[a-z]+":(?!\d+[,}])', text) == []


async def test_an_id_may_be_written_in_upper_case(stack: Stack) -> None:
    known = "ABCDEF00-0000-4000-8000-000000000001"
    await stack.report(Heartbeat(agent_id=agent_id(0xABC), resource_metrics=WHOLE))
    upper = agent_id(0xABC).upper()

    assert (await stack.get(f"/api/v1/agents/{upper}/capacity")).json()["agent_id"] == agent_id(0xABC)
    assert (await stack.get(f"/api/v1/agents/{known}/capacity")).status_code == 404


async def test_an_unknown_agent_is_not_found(stack: Stack) -> None:
    response = await stack.get(f"/api/v1/agents/{agent_id(404)}/capacity")

    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == "agent_not_found"
    with pytest.raises(AgentNotFoundError):
        await stack.service.get_agent_capacity(agent_id(404))


@pytest.mark.parametrize("text", ["abc", "123", "{%s}", "urn:uuid:%s", "%s0", "\u0660%s", "%s\n"])
async def test_an_id_that_is_no_uuid_is_refused(stack: Stack, text: str) -> None:
    wrong = text.replace("%s", agent_id(1))

    response = await stack.get(f"/api/v1/agents/{wrong.replace(chr(10), '%0a')}/capacity")

    assert response.status_code == 400
    assert response.json()["detail"] == "Invalid agent_id format (must be UUID)"
    assert response.json()["code"] == "invalid_agent_id"
    with pytest.raises(InvalidAgentIdError):
        await stack.service.get_agent_capacity(wrong)


@pytest.mark.parametrize("metrics", [None, ResourceMetrics()])
async def test_without_metrics_an_agent_reads_as_zeros(stack: Stack, metrics: ResourceMetrics | None) -> None:
    await stack.report(heartbeat(1, resource_metrics=metrics))

    document = (await stack.get(f"/api/v1/agents/{agent_id(1)}/capacity")).json()

    assert document["status"] == "online"
    assert document["gpu_type"] == "none"
    zeros = {name: document[name] for name in AGENT_FIELDS[2:-2]}
    assert set(zeros.values()) == {0}
    assert await stack.search() == []


async def test_missing_vram_counts_as_zero_and_missing_cores_as_one(stack: Stack) -> None:
    await stack.report(heartbeat(1, resource_metrics=ResourceMetrics(cpu_percent=3.0)))

    capacity = await stack.service.get_agent_capacity(agent_id(1))

    assert (capacity.gpu_vram_available_gb, capacity.cpu_cores_available) == (0.0, 1)
    assert await stack.search() == [1]
    assert await stack.search(min_cpu_cores=2) == []
    assert await stack.search(min_gpu_vram_gb=0.1) == []


@pytest.mark.parametrize("status", [AgentStatus.OFFLINE, AgentStatus.BUSY])
async def test_an_agent_that_takes_nothing_keeps_its_last_metrics(stack: Stack, status: AgentStatus) -> None:
    await stack.report(heartbeat(1, resource_metrics=WHOLE))
    await stack.report(heartbeat(1, resource_metrics=WHOLE, status=status))

    document = (await stack.get(f"/api/v1/agents/{agent_id(1)}/capacity")).json()

    assert document["status"] == status
    assert document["gpu_vram_available_gb"] == 4.0
    assert await stack.search() == []


async def test_a_silent_agent_is_offline_before_any_sweep(stack: Stack) -> None:
    await stack.report(heartbeat(1), heartbeat(2))
    stack.clock.advance(60)
    await stack.report(heartbeat(2))
    stack.clock.advance(31)

    silent = await stack.service.get_agent_capacity(agent_id(1))

    assert silent.status is AgentStatus.OFFLINE
    assert silent.timestamp.isoformat() == STARTED_AT
    assert await stack.search() == [2]


async def test_a_later_heartbeat_replaces_an_earlier_one(stack: Stack) -> None:
    await stack.report(heartbeat(1, vram=8.0, seq=1))
    stack.clock.advance(30)
    await stack.report(heartbeat(1, vram=2.5, seq=2))
    await stack.report(heartbeat(1, vram=9.5, seq=2))

    capacity = await stack.service.get_agent_capacity(agent_id(1))

    assert capacity.gpu_vram_available_gb == 2.5
    assert capacity.timestamp.isoformat() == "2027-01-15T08:00:30+00:00"


# Searches


async def test_a_row_shows_every_field_in_order(stack: Stack) -> None:
    await stack.report(heartbeat(1, resource_metrics=WHOLE, pool_name="büro / 2"))

    response = await stack.get(SEARCH)

    assert [list(row) for row in response.json()] == [ROW_FIELDS]
    assert response.json()[0] == {
        "agent_id": agent_id(1),
        "agent_type": "desktop",
        "pool_name": "büro / 2",
        "status": "online",
        "gpu_vram_available_gb": 4.0,
        "cpu_cores_available": 4,
        "cpu_load_1min": 2.0,
        "last_heartbeat_at": STARTED_AT,
    }
    assert response.headers["x-total-count"] == "1"
    assert "link" not in response.headers
    assert "x-capacity-source" not in response.headers


async def test_an_empty_fleet_gives_an_empty_list(stack: Stack) -> None:
    assert (await stack.get(SEARCH)).json() == []
    assert await stack.service.get_available_capacity() == []


async def test_most_free_vram_comes_first_and_ties_by_descending_id(stack: Stack) -> None:
    vrams = {1: 8.0, 2: 24.0, 3: 8.0, 4: 0.0, 5: 8.0, 6: 7.9}
    await stack.report(*(heartbeat(number, vram=vram) for number, vram in vrams.items()))

    assert await stack.search() == [2, 5, 3, 1, 6, 4]
    assert numbers(await stack.service.get_available_capacity(8.0)) == [2, 5, 3, 1]


@pytest.mark.parametrize(
    ("vram", "cores", "found"),
    [
        (0.0, 1, [4, 3, 2, 1]),
        (8.0, 4, [4, 3, 2]),
        (8.0, 5, [4, 3]),
        (8.1, 1, [4, 3]),
        (16.0, 12, [4, 3]),
        (16.0, 13, [4]),
        (24.0, 16, [4]),
        (24.0, 17, []),
        (24.1, 1, []),
        (0.0, 2**31 - 1, []),
        (1e300, 1, []),
    ],
)
async def test_both_thresholds_are_inclusive(stack: Stack, vram: float, cores: int, found: list[int]) -> None:
    fleet = {1: (4.0, 1), 2: (8.0, 4), 3: (16.0, 12), 4: (24.0, 16)}
    await stack.report(*(heartbeat(number, vram=v, cores=c) for number, (v, c) in fleet.items()))

    assert await stack.search(min_gpu_vram_gb=vram, min_cpu_cores=cores) == found
    assert numbers(await stack.service.get_available_capacity(vram, cores)) == found


async def test_only_online_desktops_with_cores_are_offered(stack: Stack) -> None:
    await stack.report(
        heartbeat(1),
        heartbeat(2, status=AgentStatus.BUSY),
        heartbeat(3, status=AgentStatus.OFFLINE),
        heartbeat(4, agent_type="infra"),
        heartbeat(5, resource_metrics=None),
        heartbeat(6, cores=0),
    )

    assert await stack.search() == [1]
    assert await stack.search(agent_type="infra") == [4]
    assert await stack.search(agent_type="nobody") == []


async def test_filters_narrow_a_search(stack: Stack) -> None:
    roomy = msgspec.structs.replace(WHOLE, memory_available_gb=64.0, gpu_type=GpuType.AMD)
    await stack.report(heartbeat(1, resource_metrics=WHOLE, pool_name="a&b"))
    stack.clock.advance(40)
    await stack.report(heartbeat(2, resource_metrics=roomy))

    assert await stack.search(pool_name="a&b") == [1]
    assert await stack.search(gpu_type="amd") == [2]
    assert await stack.search(min_memory_gb=32) == [2]
    assert await stack.search(max_age_s=30) == [2]
    assert await stack.search(pool_name="a&b", gpu_type="amd") == []


async def test_pages_follow_each_other_without_gap_or_repetition(stack: Stack) -> None:
    await stack.report(*(heartbeat(number, vram=float(number // 3)) for number in range(1, 12)))
    everything = await stack.search()

    target, found = f"{SEARCH}?limit=4&min_cpu_cores=2", list[int]()
    for expected_rows in (4, 4, 3):
        response = await stack.get(target)
        assert len(response.json()) == expected_rows
        assert response.headers["x-total-count"] == "11"
        found += numbers(response.json())
        target = response.links["next"]["url"] if "next" in response.links else ""

    assert target == ""
    assert found == everything


async def test_a_total_that_would_be_inexact_is_left_out(stack: Stack) -> None:
    await stack.report(heartbeat(1), heartbeat(2))

    assert (await stack.get(f"{SEARCH}?limit=1")).headers["x-total-count"] == "2"
    assert "x-total-count" not in (await stack.get(f"{SEARCH}?gpu_type=nvidia")).headers


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("min_gpu_vram_gb=-1", "min_gpu_vram_gb"),
        ("min_gpu_vram_gb=nan", "min_gpu_vram_gb"),
        ("min_gpu_vram_gb=", "min_gpu_vram_gb"),
        ("min_cpu_cores=0", "min_cpu_cores"),
        ("min_cpu_cores=1.5", "min_cpu_cores"),
        ("min_cpu_cores=1_000", "min_cpu_cores"),
        ("limit=10001", "limit"),
        ("agent_type=Desktop", "agent_type"),
        ("gpu_type=cuda", "gpu_type"),
        ("pool_name=a%0ab", "pool_name"),
        ("limit=1&limit=1", "limit"),
        ("min_gpu_vram=4", "query"),
    ],
)
async def test_a_faulty_query_names_the_field(stack: Stack, query: str, field: str) -> None:
    response = await stack.get(f"{SEARCH}?{query}")

    assert response.status_code == 400
    assert response.json()["code"] == "invalid_query"
    assert [fault["field"] for fault in response.json()["errors"]] == [field]


@pytest.mark.parametrize(
    ("vram", "cores"),
    [(-1.0, 1), (float("nan"), 1), (float("inf"), 1), (True, 1), (0.0, 0), (0.0, 1.5), (0.0, True)],
)
async def test_the_service_refuses_thresholds_that_make_no_sense(stack: Stack, vram: Any, cores: Any) -> None:
    with pytest.raises(InvalidQueryError):
        await stack.service.get_available_capacity(vram, cores)


async def test_a_search_logs_what_an_operator_expects(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    await stack.report(*(heartbeat(number, vram=4.0, cores=8) for number in range(3)))

    with caplog.at_level(logging.DEBUG, logger="app.service"):
        await stack.service.get_available_capacity(4, 8)
        await stack.service.get_agent_capacity(agent_id(1))

    assert ("INFO", "Found 3 agents with capacity (min_gpu=4.0GB, min_cpu=8)") in [
        (entry.levelname, entry.message) for entry in caplog.records
    ]
    assert "DEBUG" in [entry.levelname for entry in caplog.records if agent_id(1) in entry.message]


async def test_the_unreadable_state_of_one_agent_breaks_no_search(stack: Stack) -> None:
    await stack.report(heartbeat(1, vram=1.0), heartbeat(2, vram=2.0), heartbeat(3, vram=3.0))
    key = f"headroom:agent:{agent_id(2)}"
    assert await command(stack.index.capacity._client, "HSET", key, "document", "broken") == 0

    assert await stack.search() == [3, 1]


async def test_many_lookups_at_once_agree(stack: Stack) -> None:
    await stack.report(*(heartbeat(number, vram=float(number)) for number in range(20)))

    answers = await asyncio.gather(*(stack.service.get_available_capacity(10.0) for _ in range(20)))

    assert {tuple(numbers(answer)) for answer in answers} == {tuple(range(19, 9, -1))}


@pytest.mark.parametrize(
    ("target", "detail"),
    [
        (f"/api/v1/agents/{agent_id(1)}/capacity", "Failed to fetch agent capacity"),
        (SEARCH, "Failed to fetch available capacity"),
    ],
)
async def test_an_unforeseen_error_says_what_failed_and_no_more(stack: Stack, target: str, detail: str) -> None:
    response = await stack.get(target, index=index_that(ZeroDivisionError))

    assert response.status_code == 500
    assert response.json() == {
        "type": "about:blank",
        "title": "Internal Server Error",
        "status": 500,
        "detail": detail,
        "code": "internal_error",
    }


# The fallback to the record


@on_both_databases
async def test_the_record_gives_the_same_agents_in_the_same_order(stack: Stack, away: CapacityIndex) -> None:
    await stack.report(
        *(heartbeat(number, vram=float(number % 4), cores=number) for number in range(12)),
        heartbeat(12, status=AgentStatus.BUSY),
        heartbeat(13, resource_metrics=None),
        heartbeat(14, agent_type="infra"),
        heartbeat(15, resource_metrics=WHOLE, pool_name="b"),
    )
    for query in (
        "",
        "?min_gpu_vram_gb=1&min_cpu_cores=3",
        "?pool_name=b",
        "?limit=3",
        "?gpu_type=nvidia&limit=2",
    ):
        indexed = await stack.get(SEARCH + query)
        recorded = await stack.get(SEARCH + query, index=away)

        assert recorded.status_code == 200
        assert recorded.json() == indexed.json()
        assert recorded.headers.get("link") == indexed.headers.get("link")
        assert recorded.headers["x-capacity-source"] == "record"
        assert recorded.headers["x-capacity-as-of"] == STARTED_AT


async def test_nothing_is_said_to_come_from_the_future_after_the_clock_was_set_back(
    stack: Stack, away: CapacityIndex
) -> None:
    await stack.report(heartbeat(1))
    stack.clock.advance(-3600)
    for target in (SEARCH, f"/api/v1/agents/{agent_id(1)}/capacity"):
        recorded = await stack.get(target, index=away)
        assert recorded.status_code == 200
        assert recorded.headers["x-capacity-as-of"] == "2027-01-15T07:00:00+00:00"


@on_both_databases
async def test_nobody_stays_fresh_in_the_record_until_a_clock_has_caught_up(
    stack: Stack, away: CapacityIndex
) -> None:
    """Redis's clock was an hour ahead of this process's when it went away."""
    await stack.report(heartbeat(1))
    stack.clock.advance(60)
    await stack.report(heartbeat(2), heartbeat(3))
    stack.clock.advance(-3600)
    service = stack.service_over(away)
    assert numbers(await service.get_available_capacity()) == [3, 2, 1]
    for passed_s, fresh in ((29, [3, 2, 1]), (31, [3, 2]), (90, [3, 2])):
        stack.steady_s = passed_s
        stack.clock.advance(1)
        assert numbers(await service.get_available_capacity()) == fresh
    stack.steady_s = 91
    with pytest.raises(CapacityUnknownError):
        await service.get_available_capacity()
    with pytest.raises(CapacityUnknownError):
        await service.get_agent_capacity(agent_id(2))


@on_both_databases
async def test_the_record_knows_single_agents_too(stack: Stack, away: CapacityIndex) -> None:
    await stack.report(
        heartbeat(1, resource_metrics=WHOLE),
        heartbeat(2, resource_metrics=None),
        heartbeat(3, vram=None, cores=None),
    )
    for number in (1, 2, 3):
        target = f"/api/v1/agents/{agent_id(number)}/capacity"
        recorded = await stack.get(target, index=away)
        assert recorded.json() == (await stack.get(target)).json()
        assert recorded.headers["x-capacity-source"] == "record"
    unknown = await stack.get(f"/api/v1/agents/{agent_id(404)}/capacity", index=away)
    assert (unknown.status_code, unknown.json()["code"]) == (404, "agent_not_found")


@on_both_databases
async def test_freshness_holds_in_the_record(stack: Stack, away: CapacityIndex) -> None:
    await stack.report(heartbeat(1), heartbeat(2))
    stack.clock.advance(60)
    await stack.report(heartbeat(2))
    stack.clock.advance(31)
    service = stack.service_over(away)

    assert numbers(await service.get_available_capacity()) == [2]
    assert (await service.get_agent_capacity(agent_id(1))).status is AgentStatus.OFFLINE


@on_both_databases
@pytest.mark.parametrize("reports", [0, 1])
async def test_a_record_that_is_too_old_or_empty_answers_unknown(
    stack: Stack, away: CapacityIndex, reports: int
) -> None:
    await stack.report(*(heartbeat(number) for number in range(reports)))
    stack.clock.advance(91)

    for target in (SEARCH, f"/api/v1/agents/{agent_id(0)}/capacity"):
        response = await stack.get(target, index=away)
        assert (response.status_code, response.json()["code"]) == (503, "capacity_unknown")
        assert int(response.headers["retry-after"]) >= 1
    with pytest.raises(CapacityUnknownError):
        await stack.service_over(away).get_available_capacity()


@on_both_databases
async def test_with_both_away_the_index_is_named(stack: Stack, away: CapacityIndex, tmp_path: Path) -> None:
    gone = open_record(Settings(database_url=f"sqlite:///{tmp_path}/no/such/folder.db"))
    service = OrchestratorService(away, gone.capacity, clock=stack.clock)

    with pytest.raises(IndexUnavailableError):
        await service.get_agent_capacity(agent_id(1))
    with pytest.raises(IndexUnavailableError):
        await service.get_available_capacity()
    await gone.close()


@on_both_databases
async def test_a_lent_session_is_the_one_that_is_read(stack: Stack, away: CapacityIndex) -> None:
    await stack.report(heartbeat(1), heartbeat(2))
    engine = create_async_engine(stack.settings.record_url)
    async with AsyncSession(engine) as session:
        # Not committed: only a reader in the same transaction sees it.
        await session.execute(
            update(agent_registry).where(agent_registry.c.agent_id == agent_id(1)).values(pool_name="seen by me")
        )
        found = await stack.service_over(away).get_available_capacity(db=session)
        single = await stack.service_over(away).get_agent_capacity(agent_id(1), db=session)
        assert session.in_transaction()
        await session.rollback()
    await engine.dispose()

    assert [row.pool_name for row in found] == ["default", "seen by me"]
    assert single.agent_id == agent_id(1)


@on_both_databases
async def test_an_index_without_an_epoch_is_not_trusted(stack: Stack) -> None:
    await stack.report(heartbeat(1))
    await stack.index.capacity._client.flushall()

    meanwhile = await stack.get(SEARCH)
    await stack.index.upkeep.begin_rebuild("again", None)
    async for states in stack.record.reader.states(page_size=10):
        await stack.index.upkeep.restore(states)
    assert await stack.index.upkeep.open_epoch("again")
    afterwards = await stack.get(SEARCH)

    assert numbers(meanwhile.json()) == numbers(afterwards.json()) == [1]
    assert meanwhile.headers["x-capacity-source"] == "record"
    assert "x-capacity-source" not in afterwards.headers


@on_both_databases
async def test_a_page_from_the_index_goes_on_in_the_record(stack: Stack, away: CapacityIndex) -> None:
    await stack.report(*(heartbeat(number, vram=float(number // 2)) for number in range(6)))

    first = await stack.get(f"{SEARCH}?limit=3")
    second = await stack.get(first.links["next"]["url"], index=away)

    assert numbers(first.json()) + numbers(second.json()) == [5, 4, 3, 2, 1, 0]


@on_both_databases
async def test_unreadable_metrics_in_the_record_break_no_search(stack: Stack, away: CapacityIndex) -> None:
    await stack.report(heartbeat(1, vram=1.0), heartbeat(2, vram=2.0), heartbeat(3, vram=3.0))
    engine = create_async_engine(stack.settings.record_url)
    async with engine.begin() as connection:
        broken = {"cpu_load_1min": "broken"}
        await connection.execute(
            update(agent_registry).where(agent_registry.c.agent_id == agent_id(2)).values(resource_metrics=broken)
        )
    await engine.dispose()

    assert numbers(await stack.service_over(away).get_available_capacity()) == [3, 1]


@on_both_databases
async def test_an_index_that_hangs_is_given_up_on(stack: Stack) -> None:
    async def never(_wanted: object) -> None:
        await asyncio.Event().wait()

    await stack.report(heartbeat(1))
    hasty = OrchestratorService(
        index_that(never),
        stack.record.capacity,
        clock=stack.clock,
        index_timeout_s=0.05,
    )

    assert numbers(await hasty.get_available_capacity()) == [1]
    assert (await hasty.get_agent_capacity(agent_id(1))).agent_id == agent_id(1)
