"""The gateway: its edge, what it holds, and what it sends on."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest

from app.api.relay import build_relay
from app.errors import UnavailableError
from app.models.heartbeat import Heartbeat
from app.models.identity import AgentId
from tests.serving import http_client
from workers.host_agent.delivery import Outcome
from workers.host_agent.gateway import Collector, Forwarder

IDS = [AgentId(f"00000000-0000-4000-8000-{number:012d}") for number in range(2_000)]


class Clock:
    def __init__(self) -> None:
        self.time_s = 1000.0

    def now_s(self) -> float:
        return self.time_s

    def wall(self) -> Any:
        raise AssertionError("a gateway asks no wall clock")


class Upstream:
    """Takes what a forwarder sends, with the outcome that `answer` gives."""

    def __init__(self) -> None:
        self.batches: list[list[dict[str, Any]]] = []
        self.goodbyes = 0
        self.answer: Callable[[], Outcome] = lambda: Outcome(accepted=True, next_heartbeat_s=20.0, body=b"{}")

    def deliver(self, path: str, body: bytes) -> Outcome:
        assert path == "/api/v1/heartbeats"
        self.batches.append(msgspec.msgpack.decode(body)["heartbeats"])
        return self.answer()

    def goodbye(self, path: str, body: bytes) -> Outcome:
        self.goodbyes += 1
        return self.deliver(path, body)


class Site:
    """A gateway without its server and thread."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.upstream = Upstream()
        rng = random.Random(1)
        self.collector = Collector(self.clock, 30.0, rng)
        self.stopped = False
        self.slept: list[float] = []
        self.forwarder = Forwarder(
            self.collector,
            self.upstream,
            clock=self.clock,
            batch_s=1.0,
            rng=rng,
            sleep=self._sleep,
            stopping=lambda: self.stopped,
        )

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.stopped = True

    def take(self, number: int, seq: int) -> None:
        self.collector.take([heartbeat(number, seq)])


def heartbeat(number: int, seq: int) -> Heartbeat:
    return Heartbeat(agent_id=IDS[number], boot_id="boot", seq=seq)


@pytest.fixture
def site() -> Site:
    return Site()


FAILED = Outcome(detail="away")


def test_the_newest_of_each_agent_is_sent_in_one_batch(site: Site) -> None:
    for number, seq in ((0, 1), (1, 1), (0, 2)):
        site.take(number, seq)
    assert site.forwarder.send() == 1.0
    assert site.upstream.batches == [
        [
            {"agent_id": IDS[0], "boot_id": "boot", "seq": 2, "resource_metrics": None},
            {"agent_id": IDS[1], "boot_id": "boot", "seq": 1, "resource_metrics": None},
        ]
    ]
    site.forwarder.send()
    assert len(site.upstream.batches) == 1, "nothing is sent twice, and nothing is sent when there is nothing"


def test_batches_stay_below_the_servers_limit(site: Site) -> None:
    for number in range(1_200):
        site.take(number, 1)
    site.forwarder.send()
    assert [len(batch) for batch in site.upstream.batches] == [500, 500, 200]


def test_the_servers_wish_is_passed_on_with_jitter_but_never_later(site: Site) -> None:
    assert 24 <= site.collector.next_heartbeat_s() <= 30
    site.take(0, 1)
    site.forwarder.send()
    wishes = {site.collector.next_heartbeat_s() for _ in range(100)}
    assert 16 <= min(wishes) < max(wishes) <= 20


def test_what_could_not_be_sent_waits_unless_it_is_replaced(site: Site) -> None:
    for number in range(600):
        site.take(number, 1)
    site.upstream.answer = lambda: FAILED
    assert 1.0 <= site.forwarder.send() <= 1.25
    assert len(site.upstream.batches) == 1, "the second batch is not tried either"
    site.take(0, 2)
    site.upstream.answer = lambda: Outcome(accepted=True, body=b"{}")
    site.upstream.batches.clear()
    site.forwarder.send()
    sent = {item["agent_id"]: item["seq"] for batch in site.upstream.batches for item in batch}
    assert len(sent) == 600
    assert sent[IDS[0]] == 2


def test_an_old_sign_of_life_is_not_sent(site: Site) -> None:
    """The server would take it for a fresh one."""
    site.take(0, 1)
    site.upstream.answer = lambda: FAILED
    site.forwarder.send()
    site.clock.time_s += 15
    with pytest.raises(UnavailableError):
        site.take(1, 1)
    site.clock.time_s += 10
    site.upstream.answer = lambda: Outcome(accepted=True, body=b"{}")
    site.upstream.batches.clear()
    site.forwarder.send()
    assert [[item["agent_id"] for item in batch] for batch in site.upstream.batches] == [[IDS[1]]]


def test_agents_are_sent_elsewhere_while_no_server_is_reached(site: Site) -> None:
    site.take(0, 1)
    site.upstream.answer = lambda: FAILED
    site.forwarder.send()
    site.take(0, 2)  # a hiccup is not told
    assert site.collector.status().status == "ready"
    site.clock.time_s += 6
    with pytest.raises(UnavailableError) as told:
        site.take(0, 3)
    assert told.value.retry_after_s == 5.0
    assert site.collector.status().status == "no_server"
    site.upstream.answer = lambda: Outcome(accepted=True, body=b"{}")
    site.forwarder.send()
    assert site.upstream.batches[-1][0]["seq"] == 3, "what was taken meanwhile was held all the same"
    site.take(0, 4)


def test_the_pause_between_tries_is_bounded(site: Site) -> None:
    site.upstream.answer = lambda: FAILED
    pauses = []
    for seq in range(10):
        with contextlib.suppress(UnavailableError):
            site.take(0, seq)
        pauses.append(site.forwarder.send())
    assert pauses[0] <= 1.25
    assert pauses[-1] <= 10.0


def test_a_refused_batch_is_not_sent_again(site: Site) -> None:
    site.take(0, 1)
    site.upstream.answer = lambda: Outcome(refused=True, detail="status 422")
    assert site.forwarder.send() == 1.0
    assert site.collector.status().held == 0


def test_what_the_server_rejects_is_logged_by_agent(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.take(0, 1)
    site.take(1, 1)
    body = b'{"rejected": [{"index": 1, "code": "invalid_body", "errors": []}, {"index": 99, "code": "x"}]}'
    site.upstream.answer = lambda: Outcome(accepted=True, body=body)
    site.forwarder.send()
    assert [IDS[1] in record.getMessage() for record in caplog.records] == [True]


def test_a_clone_is_passed_on_until_the_server_takes_it_back(site: Site) -> None:
    body = msgspec.json.encode({"cloned": [IDS[0]]})
    for number in (0, 1):
        site.take(number, 1)
    site.upstream.answer = lambda: Outcome(accepted=True, cloned=True, body=body)
    site.forwarder.send()
    site.upstream.answer = lambda: Outcome(accepted=True, body=b"{}")
    site.take(1, 2)
    site.forwarder.send()
    assert [site.collector.is_cloned(IDS[number]) for number in (0, 1)] == [True, False]
    site.take(0, 2)
    site.forwarder.send()
    assert not site.collector.is_cloned(IDS[0])


def test_at_the_end_what_is_held_is_sent_once_more(site: Site) -> None:
    site.take(0, 1)
    site.stopped = True
    site.forwarder.run()
    assert (site.upstream.goodbyes, len(site.upstream.batches)) == (1, 1)
    assert site.slept == []


def test_memory_is_bounded_by_the_number_of_agents(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.host_agent.gateway._MOST_AGENTS", 2)
    site.take(0, 1)
    site.take(1, 1)
    # Never acknowledged and then forgotten: an agent that there is no room for is sent elsewhere.
    with pytest.raises(UnavailableError, match="as many agents"):
        site.take(2, 1)
    site.take(0, 2)
    assert site.collector.status().held == 2


# The edge


async def post(site: Site, path: str, body: object, *, token: str = "", **headers: str) -> httpx.Response:
    async with http_client(build_relay(site.collector, token=token)) as client:
        return await client.post(path, json=body, headers=headers)


async def test_a_heartbeat_is_taken_as_by_the_api(site: Site) -> None:
    answer = await post(site, f"/api/v1/agents/{IDS[0].upper()}/heartbeat", {"resource_metrics": {}})
    assert answer.status_code == 202
    assert answer.json()["stream_id"] is None
    assert 24 <= answer.json()["next_heartbeat_s"] <= 30
    assert site.collector.status().held == 1


async def test_a_batch_is_judged_item_by_item(site: Site) -> None:
    good, bad = {"agent_id": IDS[0], "resource_metrics": None}, {"agent_id": IDS[1]}
    answer = await post(site, "/api/v1/heartbeats", {"heartbeats": [bad, good]})
    assert answer.status_code == 202
    assert answer.json()["accepted"] == [{"index": 1, "stream_id": None}]
    assert answer.json()["rejected"][0]["index"] == 0
    assert site.collector.status().held == 1


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        (f"/api/v1/agents/{IDS[0]}/heartbeat", {}, 422, "invalid_body"),
        ("/api/v1/agents/me/heartbeat", {"resource_metrics": {}}, 400, "invalid_agent_id"),
        ("/api/v1/agents", {}, 404, "not_found"),
        ("/api/v1/heartbeats?x=1", {"heartbeats": []}, 400, "invalid_query"),
    ],
)
async def test_faults_are_the_apis(site: Site, path: str, body: object, status: int, code: str) -> None:
    answer = await post(site, path, body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_away_is_503_with_a_time(site: Site) -> None:
    site.collector.tell(FAILED, [])
    site.clock.time_s += 6
    answer = await post(site, f"/api/v1/agents/{IDS[0]}/heartbeat", {"resource_metrics": {}})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    async with http_client(build_relay(site.collector, token="")) as client:
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()) == (503, {"status": "no_server", "held": 1})
        assert (await client.get("/livez")).status_code == 200


@pytest.mark.parametrize("sent", ["", "Bearer wrong", "s3cret", "bearer s3cret"])
async def test_without_the_token_nothing_is_taken(site: Site, sent: str) -> None:
    headers = {"Authorization": sent} if sent else {}
    answer = await post(site, "/api/v1/heartbeats", {}, token="s3cret", **headers)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_with_the_token_it_is(site: Site) -> None:
    path = f"/api/v1/agents/{IDS[0]}/heartbeat"
    answer = await post(site, path, {"resource_metrics": {}}, token="s3cret", Authorization="Bearer s3cret")
    assert answer.status_code == 202
