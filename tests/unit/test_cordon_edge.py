"""Cordons at the HTTP edge and in the service, over ports that do as a test says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.errors import IndexRebuildingError, IndexUnavailableError, RecordUnavailableError
from app.models.agent import AgentFilter, AgentPage, RegisteredAgent
from app.models.capacity import AgentStatus
from app.models.cordon import Cordon
from app.models.identity import StreamId
from tests.indexing import agent_id
from tests.mock_ports import Ports

ONE = f"/api/v1/agents/{agent_id(1)}"
AT = StreamId(1_800_000_000_000, 3)
WORD = {"reason": "new disk", "actor": "ada"}


@pytest.fixture
def ports() -> Ports:
    ports = Ports()
    ports.index.cordon.return_value = AT
    ports.index.uncordon.return_value = AT
    return ports


def registered(number: int) -> RegisteredAgent:
    return RegisteredAgent(
        agent_id=agent_id(number),
        agent_type="desktop",
        pool_name="default",
        hostname="",
        status=AgentStatus.ONLINE,
        last_heartbeat_at=datetime(2027, 1, 1, tzinfo=UTC),
        registered_at=datetime(2027, 1, 1, tzinfo=UTC),
        boot_id=None,
        seq=None,
        gpus=(),
        resource_metrics=None,
    )


def given_cordon(ports: Ports) -> Cordon:
    cordon: Cordon = ports.index.cordon.await_args.args[1]
    return cordon


async def test_a_cordon_is_set_in_the_index_and_kept_in_the_record_at_once(ports: Ports) -> None:
    response = await ports.call("PATCH", ONE, json={"cordon": WORD})

    assert response.status_code == 200
    assert list(response.json()) == ["agent_id", "cordon", "recorded"]
    assert response.json()["recorded"] is True
    cordon = given_cordon(ports)
    assert (cordon.reason, cordon.actor, cordon.expires_at) == ("new disk", "ada", None)
    assert abs(cordon.since - datetime.now(UTC)) < timedelta(minutes=1)
    ports.cordons.set_cordons.assert_awaited_once_with({agent_id(1): AT}, cordon)


async def test_an_expiry_is_a_moment_or_a_length_of_time(ports: Ports) -> None:
    await ports.call("PATCH", ONE, json={"cordon": {**WORD, "expires_at": "2090-01-01T01:00:00+01:00"}})
    assert given_cordon(ports).expires_at == datetime(2090, 1, 1, tzinfo=UTC)
    response = await ports.call("PATCH", ONE, json={"cordon": {**WORD, "expires_in_s": 60}})
    cordon = given_cordon(ports)
    assert cordon.expires_at == cordon.since + timedelta(seconds=60)
    assert response.json()["cordon"]["expires_at"] == cordon.expires_at.isoformat()


async def test_a_cordon_is_lifted_with_null(ports: Ports) -> None:
    response = await ports.call("PATCH", ONE, json={"cordon": None})

    assert (response.status_code, response.json()["cordon"]) == (200, None)
    ports.index.uncordon.assert_awaited_once_with(agent_id(1))
    ports.cordons.set_cordons.assert_awaited_once_with({agent_id(1): AT}, None)


async def test_lifting_what_is_not_there_changes_nothing(ports: Ports) -> None:
    ports.index.uncordon.return_value = None

    assert (await ports.call("PATCH", ONE, json={"cordon": None})).status_code == 200
    ports.cordons.set_cordons.assert_not_awaited()


@pytest.mark.parametrize("what", [WORD, None])
async def test_an_agent_that_the_index_does_not_know(ports: Ports, what: Any) -> None:
    ports.index.cordon.return_value = ports.index.uncordon.return_value = ports.index.get.return_value = None
    ports.record.agent.return_value = registered(1)
    response = await ports.call("PATCH", ONE, json={"cordon": what})
    assert (response.status_code, response.json()["code"]) == (409, "agent_archived")
    ports.record.agent.return_value = None
    response = await ports.call("PATCH", ONE, json={"cordon": what})
    assert (response.status_code, response.json()["code"]) == (404, "agent_not_found")
    ports.index.get.side_effect = IndexRebuildingError()
    response = await ports.call("PATCH", ONE, json={"cordon": what})
    assert (response.status_code, response.json()["code"]) == (503, "index_rebuilding")


async def test_a_cordon_holds_while_the_record_is_away(ports: Ports) -> None:
    ports.cordons.set_cordons.side_effect = RecordUnavailableError()

    response = await ports.call("PATCH", ONE, json={"cordon": WORD})

    assert (response.status_code, response.json()["recorded"]) == (200, False)


async def test_nothing_is_recorded_that_is_not_in_force(ports: Ports) -> None:
    ports.index.cordon.side_effect = IndexUnavailableError()

    assert (await ports.call("PATCH", ONE, json={"cordon": WORD})).status_code == 503
    ports.cordons.set_cordons.assert_not_awaited()


async def test_a_pool_is_cordoned_page_by_page(ports: Ports) -> None:
    ports.record.list_agents.side_effect = [
        AgentPage(agents=[registered(number) for number in range(1, 21)], more=True),
        AgentPage(agents=[registered(21)]),
    ]
    ports.index.cordon.side_effect = lambda one, _: None if one == agent_id(3) else AT

    response = await ports.call("PATCH", "/api/v1/agents?pool_name=a%20b", json={"cordon": WORD})

    assert {**response.json(), "cordon": None} == {"agents": 21, "changed": 20, "cordon": None, "recorded": True}
    first, second = (call.args[0] for call in ports.record.list_agents.await_args_list)
    assert first == AgentFilter(pool_name="a b", limit=1000)
    assert second == AgentFilter(pool_name="a b", limit=1000, after=agent_id(20))
    assert [len(call.args[0]) for call in ports.cordons.set_cordons.await_args_list] == [19, 1]


async def test_what_was_cordoned_of_a_pool_is_recorded_when_the_rest_fails(ports: Ports) -> None:
    ports.record.list_agents.return_value = AgentPage(agents=[registered(number) for number in range(1, 40)])
    ports.index.cordon.side_effect = [*[AT] * 16, IndexUnavailableError(), *[AT] * 30]

    response = await ports.call("PATCH", "/api/v1/agents?pool_name=p", json={"cordon": WORD})

    assert response.status_code == 503
    (kept,) = (call.args[0] for call in ports.cordons.set_cordons.await_args_list)
    assert kept.keys() == {agent_id(number) for number in range(1, 17)}


@pytest.mark.parametrize("query", ["", "?limit=5", "?after=x", "?pool=p"])
async def test_a_pool_must_be_named(ports: Ports, query: str) -> None:
    response = await ports.call("PATCH", f"/api/v1/agents{query}", json={"cordon": WORD})

    assert (response.status_code, response.json()["code"]) == (400, "invalid_query")
    ports.index.cordon.assert_not_awaited()


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({}, "cordon", "missing"),
        ([], "body", "type"),
        ({"cordon": True}, "cordon", "type"),
        ({"cordon": {"actor": "ada"}}, "cordon.reason", "missing"),
        ({"cordon": {"reason": "r"}}, "cordon.actor", "missing"),
        ({"cordon": {**WORD, "reason": ""}}, "cordon.reason", "length"),
        ({"cordon": {**WORD, "reason": "r" * 501}}, "cordon.reason", "length"),
        ({"cordon": {**WORD, "actor": "a\u0000"}}, "cordon.actor", "not_text"),
        ({"cordon": {**WORD, "actor": 5}}, "cordon.actor", "type"),
        ({"cordon": {**WORD, "expires_at": "2001-01-01T00:00:00Z"}}, "cordon.expires_at", "out_of_range"),
        ({"cordon": {**WORD, "expires_at": "2090-01-01T00:00:00"}}, "cordon.expires_at", "type"),
        ({"cordon": {**WORD, "expires_at": "9999-01-01T00:00:00Z"}}, "cordon.expires_at", "out_of_range"),
        ({"cordon": {**WORD, "expires_in_s": 0}}, "cordon.expires_in_s", "out_of_range"),
        ({"cordon": {**WORD, "expires_in_s": -1}}, "cordon.expires_in_s", "out_of_range"),
        ({"cordon": {**WORD, "expires_in_s": 1e12}}, "cordon.expires_in_s", "out_of_range"),
        ({"cordon": {**WORD, "expires_in_s": "60"}}, "cordon.expires_in_s", "type"),
        ({"cordon": {**WORD, "expires_in_s": True}}, "cordon.expires_in_s", "type"),
        (
            {"cordon": {**WORD, "expires_in_s": 60, "expires_at": "2090-01-01T00:00:00Z"}},
            "cordon",
            "exclusive",
        ),
        ({"cordon": {**WORD, "expires": 60}}, "cordon", "unknown_field"),
        ({"cordon": None, "<img>": 1}, "body", "unknown_field"),
    ],
)
async def test_a_faulty_change_names_its_field(ports: Ports, body: Any, field: str, code: str) -> None:
    for target in (ONE, "/api/v1/agents?pool_name=p"):
        response = await ports.call("PATCH", target, json=body)
        assert response.status_code == 422, response.text
        (fault,) = response.json()["errors"]
        assert (fault["field"], fault["code"]) == (field, code)
        assert "<img>" not in response.text
    ports.index.cordon.assert_not_awaited()
    ports.index.uncordon.assert_not_awaited()
