"""What the client makes of answers over HTTP, Headroom's own and others."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from app.api.problems import STATUS_OF, problem
from app.client import (
    AgentNotFoundError,
    CapacityQuery,
    HeadroomError,
    UnavailableError,
    UnexpectedAnswerError,
)
from app.client.http import _KEPT, ERRORS, HttpTransport
from app.errors import RecordUnavailableError
from tests.indexing import agent_id


def answered_by(handler: Callable[[httpx.Request], httpx.Response]) -> HttpTransport:
    transport = HttpTransport("http://headroom/behind/a/proxy/", timeout_s=1.0)
    transport._client.close()
    transport._client = httpx.Client(transport=httpx.MockTransport(handler))
    return transport


def always(status: int = 200, **answer: Any) -> HttpTransport:
    return answered_by(lambda _request: httpx.Response(status, **answer))


@pytest.mark.parametrize("code", sorted(ERRORS))
def test_an_error_comes_back_as_what_it_was(code: str) -> None:
    error = ERRORS[code]
    raised = problem(error("What happened", retry_after_s=3.0))
    transport = always(raised.status_code, headers=dict(raised.headers), content=bytes(raised.body))
    with pytest.raises(HeadroomError) as told:
        transport.find(CapacityQuery())
    assert type(told.value) is error
    assert (told.value.code, told.value.detail, told.value.retry_after_s) == (code, "What happened", 3.0)


def test_every_error_of_the_domain_is_known() -> None:
    assert set(ERRORS) <= set(STATUS_OF)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b"<html>Welcome</html>", UnexpectedAnswerError),
        (200, b'{"not": "a list"}', UnexpectedAnswerError),
        (200, b'[{"agent_id": "x"}]', UnexpectedAnswerError),
        (204, b"", UnexpectedAnswerError),
        (302, b"", UnexpectedAnswerError),
        (404, b"<html>Not here</html>", UnexpectedAnswerError),
        (404, b'{"code": "not_found"}', UnexpectedAnswerError),
        (400, b'{"code": "<script>"}', UnexpectedAnswerError),
        (500, b"\xff", UnexpectedAnswerError),
        (502, b"<html>Bad gateway</html>", UnavailableError),
        (503, b"", UnavailableError),
        (503, b'{"code": "from_the_future", "detail": "?"}', UnavailableError),
        (504, b"[]", UnavailableError),
        (429, b"slow down", UnavailableError),
    ],
)
def test_answers_of_others(status: int, body: bytes, expected: type[HeadroomError]) -> None:
    transport = always(status, content=body)
    for call in (
        lambda: transport.find(CapacityQuery()),
        lambda: transport.count(CapacityQuery()),
        lambda: transport.get(agent_id(1)),
    ):
        with pytest.raises(HeadroomError) as told:
            call()
        assert type(told.value) is expected
        assert "script" not in told.value.detail


def test_an_unknown_agent_is_none() -> None:
    raised = problem(AgentNotFoundError())
    assert always(404, content=bytes(raised.body)).get(agent_id(1)) is None


def test_retry_after_is_passed_on_if_it_is_a_number() -> None:
    for sent, read in (("7", 7.0), ("Wed, 21 Oct 2026 07:28:00 GMT", None)):
        with pytest.raises(UnavailableError) as told:
            always(503, headers={"Retry-After": sent}).ping()
        assert told.value.retry_after_s == read


def row(number: int) -> str:
    return (
        f'{{"agent_id":"{agent_id(number)}","agent_type":"desktop","pool_name":"default","status":"online",'
        f'"gpu_vram_available_gb":{float(number)},"cpu_cores_available":4,"cpu_load_1min":0.5,'
        f'"last_heartbeat_at":"2026-01-01T00:00:00+00:00"}}'
    )


def test_pages_are_followed_behind_a_proxy_and_rows_listed_once() -> None:
    asked: list[httpx.URL] = []
    pages = {None: ([5, 4], "two"), "two": ([4, 3], "three"), "three": ([2], None)}

    def serve(request: httpx.Request) -> httpx.Response:
        asked.append(request.url)
        numbers, following = pages[request.url.params.get("cursor")]
        link = {"Link": f'</api/v1/x?cursor={following}&limit=2>; rel="next"'} if following else {}
        return httpx.Response(200, headers=link, text=f"[{','.join(map(row, numbers))}]")

    page = answered_by(serve).find(CapacityQuery(min_gpu_vram_gb=2, pool_name="a&b", limit=10**9))
    assert [agent.gpu_vram_available_gb for agent in page.agents] == [5.0, 4.0, 3.0, 2.0]
    assert page.agents[0].last_heartbeat_at == datetime(2026, 1, 1, tzinfo=UTC)
    assert not page.more
    assert {url.path for url in asked} == {"/behind/a/proxy/api/v1/agents/available-capacity"}
    assert {url.params["pool_name"] for url in asked} == {"a&b"}


def test_a_page_that_leads_to_itself_ends() -> None:
    transport = always(headers={"Link": '<?cursor=x>; rel="next"'}, text="[]")
    with pytest.raises(UnexpectedAnswerError):
        transport.find(CapacityQuery())


def test_an_answer_from_the_record_says_so() -> None:
    headers = {
        "X-Capacity-Source": "record",
        "X-Capacity-As-Of": "2026-01-01T00:00:00+00:00",
        "X-Total-Count": "17",
    }
    transport = always(headers=headers, text=f"[{row(1)}]")
    page = transport.find(CapacityQuery())
    assert (page.source, page.as_of, page.total) == ("record", datetime(2026, 1, 1, tzinfo=UTC), 17)
    assert transport.count(CapacityQuery()) == 17


def test_a_count_that_the_server_does_not_give_is_counted() -> None:
    assert always(text=f"[{row(1)}]").count(CapacityQuery()) == 1

    def serve(request: httpx.Request) -> httpx.Response:
        if request.url.params["limit"] == "1":
            return httpx.Response(200, headers={"Link": '<?cursor=x>; rel="next"'}, text=f"[{row(3)}]")
        return httpx.Response(200, text=f"[{','.join(map(row, (3, 2, 1)))}]")

    assert answered_by(serve).count(CapacityQuery()) == 3


def test_a_broken_connection_is_tried_once_more_and_then_away() -> None:
    attempts = []

    def drop(request: httpx.Request) -> httpx.Response:
        attempts.append(request)
        raise httpx.RemoteProtocolError("Server disconnected without sending a response.")

    with pytest.raises(UnavailableError) as told:
        answered_by(drop).find(CapacityQuery())
    assert len(attempts) == 2
    assert not isinstance(told.value, RecordUnavailableError)


def test_a_slow_server_is_away_at_once() -> None:
    attempts = []

    def hang(request: httpx.Request) -> httpx.Response:
        attempts.append(request)
        raise httpx.ReadTimeout("too slow")

    with pytest.raises(UnavailableError, match="in time"):
        answered_by(hang).ping()
    assert len(attempts) == 1


def test_connections_are_bounded() -> None:
    """What is left out of httpx's limits is unbounded, not the default."""
    bounds = (_KEPT.max_connections, _KEPT.max_keepalive_connections, _KEPT.keepalive_expiry)
    assert bounds == (100, 20, 5.0)
