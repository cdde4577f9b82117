"""The planner's client gives the same answers and errors whichever way it goes, blocking or not."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

import app.client.http
import app.index.lookup
from app.client import (
    AgentCapacity,
    AgentNotFoundError,
    AgentStatus,
    AvailableCapacity,
    CapacityClient,
    CapacityQuery,
    Cursor,
    GpuType,
    InvalidAgentIdError,
    InvalidQueryError,
)
from tests.indexing import agent_id
from tests.planning import KINDS, SILENT, Ask, api, asker, fill, machine, numbers, sweep
from tests.servers import ValkeyServer
from tests.waiting import PATIENCE_S

WAYS = ("redis", "unix", "http")


@pytest.fixture(params=WAYS)
def url(request: pytest.FixtureRequest, valkey_server: ValkeyServer, redis_url: str) -> Iterator[str]:
    if request.param == "unix":
        yield f"unix://{valkey_server.socket_path}"
    elif request.param == "redis":
        yield redis_url
    else:
        with api(redis_url, request.getfixturevalue("sqlite_record_url")) as served_at:
            yield served_at


@pytest.fixture(params=KINDS)
def ask(request: pytest.FixtureRequest, url: str) -> Ask:
    return asker(request.param, url, timeout_s=PATIENCE_S)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, [4, 3, 2, 1, 5]),
        ({"min_gpu_vram_gb": 12}, [4, 3, 2, 1]),
        ({"min_gpu_vram_gb": 12, "min_cpu_cores": 8}, [4, 3, 2]),
        ({"min_gpu_vram_gb": 12.0, "min_cpu_cores": 9}, [4, 3]),
        ({"min_gpu_vram_gb": 12, "min_cpu_cores": 8, "limit": 2}, [4, 3]),
        ({"pool_name": "training"}, [4]),
        ({"pool_name": "no such pool: {ü}"}, []),
        ({"agent_type": "infra"}, [6]),
        ({"gpu_type": "amd"}, [5]),
        ({"gpu_type": GpuType.NVIDIA, "limit": 1}, [4]),
        ({"min_memory_gb": 64}, [4]),
        ({"max_age_s": 600}, [4, 3, 2, 1, 5]),
        ({"max_age_s": 0}, []),
        ({"min_gpu_vram_gb": 1e300}, []),
        ({"min_cpu_cores": 2**31 - 1}, []),
    ],
)
def test_find_lists_what_fits(ask: Ask, redis_url: str, wanted: dict[str, Any], found: list[int]) -> None:
    fill(redis_url)
    agents = ask(lambda client: client.find(**wanted))
    assert numbers(agents) == found
    if "limit" not in wanted:
        sweep(redis_url)
        assert ask(lambda client: client.count(**wanted)) == len(found)


def test_a_row_and_an_agent_are_the_domain_s_own(ask: Ask, redis_url: str) -> None:
    fill(redis_url)
    before = datetime.now(UTC)

    [row] = ask(lambda client: client.find(40))
    assert type(row) is AvailableCapacity
    assert row == AvailableCapacity(
        agent_id=agent_id(4),
        agent_type="desktop",
        pool_name="training",
        status=AgentStatus.ONLINE,
        gpu_vram_available_gb=80.0,
        cpu_cores_available=64,
        cpu_load_1min=12.5,
        last_heartbeat_at=row.last_heartbeat_at,
    )
    assert abs((before - row.last_heartbeat_at).total_seconds()) < 60

    agent = ask(lambda client: client.get(agent_id(4).upper()))
    assert type(agent) is AgentCapacity
    assert agent.timestamp == row.last_heartbeat_at
    assert (agent.status, agent.cpu_cores_physical, agent.memory_available_gb) == (AgentStatus.ONLINE, 64, 256.0)


def test_a_silent_agent_is_offline_and_never_found(ask: Ask, redis_url: str) -> None:
    fill(redis_url)
    assert SILENT not in numbers(ask(lambda client: client.find()))
    agent = ask(lambda client: client.get(agent_id(SILENT)))
    assert (agent.status, agent.gpu_vram_available_gb) == (AgentStatus.OFFLINE, 40.0)


def test_search_says_where_the_answer_comes_from(ask: Ask, redis_url: str) -> None:
    fill(redis_url)
    page = ask(lambda client: client.search(CapacityQuery(min_gpu_vram_gb=12.0, limit=3)))
    assert numbers(page.agents) == [4, 3, 2]
    # The silent one was not swept yet and counts.
    assert (page.more, page.total, page.source, page.as_of) == (True, 5, "index", None)
    page = ask(lambda client: client.search(CapacityQuery(gpu_type=GpuType.AMD)))
    assert (numbers(page.agents), page.more, page.total) == ([5], False, None)


def test_a_search_of_very_many_agents_does_not_stop_on_the_way(
    ask: Ask, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.index.lookup, "SLICE", 5)
    monkeypatch.setattr(app.index.lookup, "_MOST_SLICES", 2)
    fill(
        redis_url,
        heartbeats=[machine(1, 1.0, 8, gpu_type=GpuType.AMD), *(machine(n, 9.0, 8) for n in range(2, 41))],
    )
    assert len(ask(lambda client: client.find())) == 40
    assert ask(lambda client: client.count(gpu_type="nvidia")) == 39
    assert numbers(ask(lambda client: client.find(gpu_type="amd", limit=1))) == [1]


@pytest.mark.parametrize("filtered", [False, True])
def test_pages_and_slices_are_followed_to_the_end(
    ask: Ask, redis_url: str, monkeypatch: pytest.MonkeyPatch, *, filtered: bool
) -> None:
    monkeypatch.setattr(app.client.http, "MAX_LIMIT", 7)
    monkeypatch.setattr(app.index.lookup, "SLICE", 5)
    fleet = [machine(number, float(number // 3), 1 + number % 9) for number in range(40)]
    fill(redis_url, heartbeats=fleet)
    expected = sorted(
        (number for number in range(40) if 1 + number % 9 >= 3),
        key=lambda number: (number // 3, number),
        reverse=True,
    )
    filters: dict[str, Any] = {"gpu_type": "nvidia"} if filtered else {}
    sweep(redis_url)
    found = ask(lambda client: client.find(0.0, 3, **filters))
    assert numbers(found) == expected
    assert numbers(ask(lambda client: client.find(0.0, 3, limit=9, **filters))) == expected[:9]
    assert ask(lambda client: client.count(0.0, 3, **filters)) == len(expected)


@pytest.mark.parametrize(
    "wanted",
    [
        {"min_gpu_vram_gb": -1},
        {"min_gpu_vram_gb": float("nan")},
        {"min_gpu_vram_gb": float("inf")},
        {"min_gpu_vram_gb": "12"},
        {"min_gpu_vram_gb": True},
        {"min_gpu_vram_gb": None},
        {"min_cpu_cores": 0},
        {"min_cpu_cores": 2**31},
        {"min_cpu_cores": 1.0},
        {"agent_type": "no type"},
        {"agent_type": "desktop:pool:x"},
        {"agent_type": None},
        {"pool_name": ""},
        {"pool_name": "x" * 129},
        {"pool_name": "a\nb"},
        {"pool_name": "\ud800"},
        {"pool_name": 5},
        {"gpu_type": "voodoo"},
        {"min_memory_gb": -0.5},
        {"max_age_s": -1},
        {"max_age_s": 1e10},
    ],
)
def test_what_no_search_can_have_is_refused_before_anything_is_sent(wanted: dict[str, Any]) -> None:
    nowhere = asker("blocking", "redis://127.0.0.1:1")
    for question in (lambda client: client.find(**wanted), lambda client: client.count(**wanted)):
        with pytest.raises(InvalidQueryError):
            nowhere(question)


@pytest.mark.parametrize("limit", [0, -1, 1.5, True])
def test_a_limit_is_a_whole_number(limit: Any) -> None:
    with pytest.raises(InvalidQueryError):
        asker("blocking", "redis://127.0.0.1:1")(lambda client: client.find(limit=limit))


def test_search_follows_pages_by_itself() -> None:
    query = CapacityQuery(after=Cursor(1.0, agent_id(1)))
    with pytest.raises(InvalidQueryError):
        asker("blocking", "redis://127.0.0.1:1")(lambda client: client.search(query))


def test_an_unknown_agent_and_no_agent_at_all(ask: Ask, redis_url: str) -> None:
    fill(redis_url)
    with pytest.raises(AgentNotFoundError) as unknown:
        ask(lambda client: client.get(agent_id(99)))
    assert unknown.value.code == "agent_not_found"
    with pytest.raises(InvalidAgentIdError):
        ask(lambda client: client.get("not-a-uuid"))


def test_ping(ask: Ask) -> None:
    assert ask(lambda client: client.ping()) is None


def test_another_kind_of_url_is_refused() -> None:
    for url in ("127.0.0.1:6379", "ftp://host", ""):
        with pytest.raises(ValueError, match="redis://"):
            CapacityClient(url)


def test_all_ways_give_the_same_answers(
    redis_url: str, valkey_server: ValkeyServer, sqlite_record_url: str
) -> None:
    chance = random.Random(11)
    fleet = [
        machine(
            number,
            chance.choice([0.0, 0.5, 8.0, 24.0, 24.0, 79.9]),
            chance.randrange(0, 70),
            pool_name=chance.choice(["default", "a b:c", "ü"]),
            agent_type=chance.choice(["desktop", "desktop", "infra"]),
            gpu_type=chance.choice(list(GpuType)),
            memory_available_gb=float(chance.randrange(0, 128)),
        )
        for number in range(300)
    ]
    fill(redis_url, heartbeats=fleet)
    sweep(redis_url)
    with api(redis_url, sqlite_record_url) as api_url:
        clients = [CapacityClient(url, timeout_s=PATIENCE_S) for url in (redis_url, api_url)]
        for _ in range(60):
            wanted: dict[str, Any] = {
                "min_gpu_vram_gb": chance.choice([0.0, 0.5, 8.0, 23.99, 24, 80]),
                "min_cpu_cores": chance.randrange(1, 72),
                "agent_type": chance.choice(["desktop", "infra"]),
                "pool_name": chance.choice([None, "default", "a b:c", "ü"]),
                "gpu_type": chance.choice([None, None, *GpuType]),
                "min_memory_gb": chance.choice([0.0, 0.0, 64.5]),
            }
            direct, http = (client.find(**wanted) for client in clients)
            assert direct == http, wanted
            assert clients[0].count(**wanted) == clients[1].count(**wanted)
            assert [clients[0].get(row.agent_id) for row in direct[:2]] == [
                clients[1].get(row.agent_id) for row in http[:2]
            ]
        for client in clients:
            client.close()
