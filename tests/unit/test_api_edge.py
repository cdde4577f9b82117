"""The HTTP edge over ports that do as a test says: statuses, headers, what is called and what is not."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any

import httpx
import msgpack
import pytest

import app.errors
from app.api import problems
from app.api.problems import STATUS_OF
from app.api.routes import OPERATIONS
from app.errors import (
    AgentNotFoundError,
    BacklogFullError,
    HeadroomError,
    IndexRebuildingError,
    IndexUnavailableError,
    RecordUnavailableError,
)
from app.models.agent import AgentFilter, AgentHistory, AgentPage, Event, RegisteredAgent, Sample
from app.models.capacity import AgentStatus, Resources
from app.models.heartbeat import Gpu, Heartbeat, ResourceMetrics
from app.models.identity import StreamId
from app.models.transition import Reason, TransitionKind
from tests.indexing import agent_id
from tests.mock_ports import Ports

AT = datetime(2027, 1, 15, 8, tzinfo=UTC)
REGISTERED = RegisteredAgent(
    agent_id=agent_id(1),
    agent_type="desktop",
    pool_name="default",
    hostname="host",
    status=AgentStatus.BUSY,
    last_heartbeat_at=AT,
    registered_at=AT,
    boot_id="boot",
    seq=7,
    gpus=(Gpu(index=0, vram_total_gb=8.0),),
    resource_metrics=ResourceMetrics(cpu_cores_available=4, cpu_percent=3.0),
)
JSON = {"content-type": "application/json"}
SOUND = b'{"resource_metrics": {}}'


@pytest.fixture
def ports() -> Ports:
    return Ports()


def error_classes() -> list[type[HeadroomError]]:
    found, left = [HeadroomError], [HeadroomError]
    while left:
        children = left.pop().__subclasses__()
        found += children
        left += children
    return found


def test_every_error_has_a_status_and_every_status_an_error() -> None:
    assert app.errors
    assert problems
    assert {error.code for error in error_classes()} >= set(STATUS_OF)
    assert {error.code for error in error_classes() if error.__module__.startswith("app.")} <= set(STATUS_OF)


def test_operation_ids_are_unique_and_faults_are_known() -> None:
    assert len({operation.operation_id for operation in OPERATIONS}) == len(OPERATIONS)
    assert all(code in STATUS_OF for operation in OPERATIONS for code in operation.faults)


# Heartbeats


async def test_a_heartbeat_is_acknowledged_with_its_place_in_the_log(ports: Ports) -> None:
    response = await ports.post(f"/api/v1/agents/{agent_id(1)}/heartbeat", SOUND)

    assert response.status_code == 202
    assert list(response.json()) == ["stream_id", "next_heartbeat_s"]
    assert response.json()["stream_id"] == "1800000000000-0"
    assert ports.appended == [Heartbeat(agent_id=agent_id(1), resource_metrics=ResourceMetrics())]


async def test_json_and_msgpack_say_the_same(ports: Ports) -> None:
    document = {
        "agent_id": agent_id(1),
        "agent_type": "infra",
        "pool_name": "büro",
        "hostname": "h",
        "status": "busy",
        "boot_id": "b 1",
        "seq": 3,
        "sent_at": "2027-01-15T09:00:00+01:00",
        "gpus": [{"index": 1, "uuid": "u", "name": "n", "vram_total_gb": 8, "vram_available_gb": 4.5}],
        "running_claims": [{"claim_id": "c", "gpu_vram_gb": 1, "cpu_cores": 2, "memory_gb": 0.5}],
        "resource_metrics": {"cpu_cores_available": 4, "gpu_vram_available_gb": 4, "gpu_type": "amd"},
        "unknown": {"a": 1},
    }
    target = f"/api/v1/agents/{agent_id(1).upper()}/heartbeat"

    await ports.call("POST", target, json=document)
    await ports.post(target, msgpack.packb(document), **{"content-type": "application/msgpack"})

    from_json, from_msgpack = ports.appended
    assert from_json == from_msgpack
    assert from_json.agent_id == agent_id(1)
    assert from_json.sent_at == AT
    assert from_json.gpus == (Gpu(index=1, uuid="u", name="n", vram_total_gb=8.0, vram_available_gb=4.5),)
    assert type(from_json.gpus[0].vram_total_gb) is float


@pytest.mark.parametrize(
    ("error", "status"),
    [(IndexUnavailableError(), 503), (IndexRebuildingError(retry_after_s=0.2), 503), (BacklogFullError(), 429)],
)
async def test_a_heartbeat_the_log_does_not_take_is_not_acknowledged(
    ports: Ports, error: HeadroomError, status: int
) -> None:
    ports.log.append.side_effect = error

    for target, body in (
        (f"/api/v1/agents/{agent_id(1)}/heartbeat", SOUND),
        (
            "/api/v1/heartbeats",
            b'{"heartbeats": [{"agent_id": "%s", "resource_metrics": {}}]}' % agent_id(1).encode(),
        ),
    ):
        response = await ports.post(target, body)
        assert (response.status_code, response.json()["code"]) == (status, error.code)
        assert int(response.headers["retry-after"]) >= 1


async def test_a_batch_is_judged_item_by_item_and_appended_once(ports: Ports) -> None:
    items = [
        {"agent_id": agent_id(1), "resource_metrics": {}},
        {"agent_id": "nobody", "resource_metrics": {"cpu_percent": -1}},
        {"agent_id": agent_id(3), "resource_metrics": None},
    ]

    response = await ports.call("POST", "/api/v1/heartbeats", json={"heartbeats": items})

    assert response.status_code == 202
    assert response.json()["accepted"] == [
        {"index": 0, "stream_id": "1800000000000-0"},
        {"index": 2, "stream_id": "1800000000000-1"},
    ]
    (rejected,) = response.json()["rejected"]
    assert (rejected["index"], rejected["code"]) == (1, "invalid_body")
    assert [(fault["field"], fault["code"]) for fault in rejected["errors"]] == [
        ("agent_id", "type"),
        ("resource_metrics.cpu_percent", "out_of_range"),
    ]
    assert [beat.agent_id for beat in ports.appended] == [agent_id(1), agent_id(3)]
    ports.log.append.assert_awaited_once()


async def test_a_batch_without_a_sound_item_appends_nothing(ports: Ports) -> None:
    response = await ports.call(
        "POST", "/api/v1/heartbeats", json={"heartbeats": [{"agent_id": agent_id(1)}, None]}
    )

    assert response.status_code == 422
    assert response.json()["errors"] == [
        {"field": "heartbeats[0].resource_metrics", "code": "missing", "message": "Field required"},
        {"field": "heartbeats[1]", "code": "type", "message": "Must be an object"},
    ]
    ports.log.append.assert_not_awaited()


async def test_the_next_heartbeat_is_asked_for_with_jitter(ports: Ports) -> None:
    random.seed(7)
    asked = [
        (await ports.post(f"/api/v1/agents/{agent_id(1)}/heartbeat", SOUND)).json()["next_heartbeat_s"]
        for _ in range(20)
    ]

    assert all(27.0 <= seconds <= 33.0 for seconds in asked)
    assert len(set(asked)) > 10


async def test_an_oversized_body_is_refused_before_it_is_decoded() -> None:
    ports = Ports(max_body_bytes=1024)

    response = await ports.post(f"/api/v1/agents/{agent_id(1)}/heartbeat", b"[" * 1025)

    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")


# Agents of the record


async def test_agents_are_listed_with_a_link_to_the_next_page(ports: Ports) -> None:
    ports.record.list_agents.return_value = AgentPage(agents=[REGISTERED], more=True)

    response = await ports.call("GET", "/api/v1/agents?pool_name=a%26b&status=busy&limit=1")

    assert response.status_code == 200
    assert response.json() == [
        {
            "agent_id": agent_id(1),
            "agent_type": "desktop",
            "pool_name": "default",
            "hostname": "host",
            "status": "busy",
            "last_heartbeat_at": "2027-01-15T08:00:00+00:00",
            "registered_at": "2027-01-15T08:00:00+00:00",
            "boot_id": "boot",
            "seq": 7,
            "gpus": [{"index": 0, "vram_total_gb": 8.0}],
            "resource_metrics": {"cpu_percent": 3.0, "cpu_cores_available": 4},
            "cordon": None,
        }
    ]
    ports.record.list_agents.assert_awaited_once_with(
        AgentFilter(pool_name="a&b", status=AgentStatus.BUSY, limit=1)
    )
    assert httpx.URL(response.links["next"]["url"]).params == httpx.QueryParams(
        {"pool_name": "a&b", "status": "busy", "limit": "1", "after": agent_id(1)}
    )


async def test_details_and_history_of_an_agent(ports: Ports) -> None:
    ports.record.agent.return_value = REGISTERED
    ports.record.history.return_value = AgentHistory(
        agent_id=agent_id(1),
        samples=[Sample(at=AT, status=AgentStatus.ONLINE, resources=Resources(cpu_cores_available=2))],
        events=[Event(at=AT, from_status=None, to_status=TransitionKind.ONLINE, reason=Reason.HEARTBEAT)],
    )

    details = await ports.call("GET", f"/api/v1/agents/{agent_id(1)}")
    history = await ports.call("GET", f"/api/v1/agents/{agent_id(1)}/history?limit=5")

    assert details.json()["hostname"] == "host"
    assert history.json()["samples"][0]["resources"]["cpu_cores_available"] == 2
    assert history.json()["events"] == [
        {
            "at": "2027-01-15T08:00:00+00:00",
            "from_status": None,
            "to_status": "online",
            "reason": "heartbeat",
            "changes": 1,
            "last_at": "2027-01-15T08:00:00+00:00",
            "cordon": None,
        }
    ]
    ports.record.history.assert_awaited_once_with(agent_id(1), limit=5)


@pytest.mark.parametrize("part", ["", "/history"])
async def test_an_agent_the_record_does_not_know(ports: Ports, part: str) -> None:
    ports.record.agent.return_value = ports.record.history.return_value = None

    response = await ports.call("GET", f"/api/v1/agents/{agent_id(1)}{part}")

    assert (response.status_code, response.json()["code"]) == (404, "agent_not_found")


async def test_a_record_that_is_away(ports: Ports) -> None:
    ports.record.list_agents.side_effect = RecordUnavailableError

    response = await ports.call("GET", "/api/v1/agents")

    assert (response.status_code, response.json()["code"]) == (503, "record_unavailable")
    assert response.headers["retry-after"] == "2"


@pytest.mark.parametrize(
    ("position", "recorded", "status", "code"),
    [
        (StreamId(5), True, 204, None),
        (StreamId(5), False, 204, None),
        # Its log entry makes the recorder forget it too, once it can.
        (StreamId(5), RecordUnavailableError(), 204, None),
        (None, True, 204, None),
        (None, False, 404, AgentNotFoundError.code),
        (None, RecordUnavailableError(), 503, RecordUnavailableError.code),
    ],
)
async def test_forgetting(
    ports: Ports, position: StreamId | None, recorded: Any, status: int, code: str | None
) -> None:
    ports.index.forget.return_value = position
    ports.record.forget.side_effect = [recorded]

    response = await ports.call("DELETE", f"/api/v1/agents/{agent_id(1)}")

    assert response.status_code == status
    assert (response.json()["code"] if response.content else None) == code
    ports.record.forget.assert_awaited_once_with(agent_id(1), position=position)


async def test_nothing_is_forgotten_while_the_index_is_away(ports: Ports) -> None:
    ports.index.forget.side_effect = IndexUnavailableError

    response = await ports.call("DELETE", f"/api/v1/agents/{agent_id(1)}")

    assert response.status_code == 503
    ports.record.forget.assert_not_awaited()


# Operations


@pytest.mark.parametrize(
    ("index", "record", "status"), [(None, None, 200), (True, None, 200), (None, True, 200), (True, True, 503)]
)
async def test_ready_while_either_store_answers(ports: Ports, index: Any, record: Any, status: int) -> None:
    ports.index.ping.side_effect = IndexRebuildingError if index else None
    ports.record.ping.side_effect = RecordUnavailableError if record else None

    response = await ports.call("GET", "/readyz")

    assert response.status_code == status
    assert response.json() == {
        "status": "ready" if status == 200 else "not_ready",
        "parts": {
            "index": {"status": "away", "code": "index_rebuilding"} if index else {"status": "up"},
            "record": {"status": "away", "code": "record_unavailable"} if record else {"status": "up"},
        },
    }
    assert ("retry-after" in response.headers) == (status == 503)


async def test_alive_whatever_is_away(ports: Ports) -> None:
    ports.index.ping.side_effect = IndexUnavailableError

    assert (await ports.call("GET", "/livez")).json() == {"status": "alive"}


async def test_metrics_are_for_prometheus(ports: Ports) -> None:
    await ports.post(f"/api/v1/agents/{agent_id(1)}/heartbeat", SOUND)

    response = await ports.call("GET", "/metrics")

    assert response.headers["content-type"].startswith("text/plain")
    assert "headroom_heartbeats_accepted_total" in response.text


async def test_a_path_names_all_its_methods(ports: Ports) -> None:
    response = await ports.call("PUT", f"/api/v1/agents/{agent_id(1)}")

    assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed")
    assert response.headers["allow"] == "GET, PATCH, DELETE"


async def test_other_unforeseen_errors_say_nothing(ports: Ports) -> None:
    ports.record.list_agents.side_effect = ZeroDivisionError("secret")

    response = await ports.call("GET", "/api/v1/agents")

    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    assert "secret" not in response.text
