"""Several servers: who is asked when, and to whom goodbye is said. Clock and network are simulated."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest

from tests.simulated_time import SimulatedClock
from workers.host_agent.clock import NeverStops
from workers.host_agent.connection import AnswerLostError, HttpAnswer
from workers.host_agent.delivery import Delivery, Outcome

PATH = "/api/v1/agents/x/heartbeat"
BODY = msgspec.msgpack.encode({"seq": 1})


class Scripted:
    """A server of the simulated network: says what its `answers` hold in turn, the last one for ever."""

    def __init__(self, *answers: HttpAnswer | OSError) -> None:
        self.answers = list(answers)
        self.asked = 0

    def post(self, path: str, body: bytes, headers: Mapping[str, str], *, timeout_s: float) -> HttpAnswer:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, OSError):
            raise answer
        return answer

    def close(self) -> None:
        """Nothing is open."""


ACCEPTED = HttpAnswer(202, b'{"stream_id": "1-0", "next_heartbeat_s": 30.0}', None)
REFUSED_CONNECTION = ConnectionRefusedError(111, "Connection refused")


def busy_for(retry_after_s: float) -> HttpAnswer:
    return HttpAnswer(503, b"", retry_after_s)


def scripted(clock: SimulatedClock, *servers: Scripted) -> Delivery:
    by_name = {f"http://{number}": server for number, server in enumerate(servers)}
    return Delivery(
        tuple(by_name),
        timeout_s=1.0,
        token=lambda: "",
        pause=NeverStops(),
        clock=clock,
        connect=by_name.__getitem__,
    )


def test_a_server_that_wants_to_be_left_alone_does_not_slow_the_tries_at_the_others() -> None:
    clock, overrun, away = SimulatedClock(), Scripted(busy_for(120.0)), Scripted(REFUSED_CONNECTION)
    delivery = scripted(clock, overrun, away)
    assert delivery.deliver(PATH, BODY).retry_after_s is None, "the other one may be back any moment"
    for _ in range(3):
        clock.time_s += 30
        assert delivery.deliver(PATH, BODY).retry_after_s is None
    assert (overrun.asked, away.asked) == (1, 4)
    clock.time_s += 31
    delivery.deliver(PATH, BODY)
    assert (overrun.asked, away.asked) == (2, 5)


@pytest.mark.parametrize("wishes", [(20.0, 300.0), (300.0, 20.0)])
def test_when_all_want_to_be_left_alone_the_first_wish_to_end_counts(wishes: tuple[float, float]) -> None:
    clock = SimulatedClock()
    servers = [Scripted(busy_for(wish), ACCEPTED) for wish in wishes]
    delivery = scripted(clock, *servers)
    assert delivery.deliver(PATH, BODY).retry_after_s == 20.0
    clock.time_s += 10
    assert delivery.deliver(PATH, BODY) == Outcome(retry_after_s=10.0), "asked too early, it asks nobody"
    assert [server.asked for server in servers] == [1, 1]
    clock.time_s += 10
    assert delivery.deliver(PATH, BODY).accepted
    assert [server.asked for server in servers] == [2 if wish == 20.0 else 1 for wish in wishes]


def test_nobody_is_left_alone_for_more_than_an_hour() -> None:
    clock, server = SimulatedClock(), Scripted(busy_for(1e12), ACCEPTED)
    delivery = scripted(clock, server)
    assert delivery.deliver(PATH, BODY).retry_after_s == 3600.0
    clock.time_s += 3600
    assert delivery.deliver(PATH, BODY).accepted


def test_goodbye_goes_to_another_server_when_the_one_in_use_is_gone() -> None:
    clock = SimulatedClock()
    in_use, other = Scripted(ACCEPTED, REFUSED_CONNECTION), Scripted(ACCEPTED)
    delivery = scripted(clock, in_use, other)
    assert delivery.deliver(PATH, BODY).accepted
    assert delivery.goodbye(PATH, BODY).accepted
    assert (in_use.asked, other.asked) == (2, 1)


def test_goodbye_to_silent_servers_ends_in_time() -> None:
    clock = SimulatedClock()

    class Silent(Scripted):
        def post(self, path: str, body: bytes, headers: Mapping[str, str], *, timeout_s: float) -> HttpAnswer:
            clock.time_s += timeout_s
            return super().post(path, body, headers, timeout_s=timeout_s)

    delivery = scripted(clock, *[Silent(AnswerLostError("timed out")) for _ in range(100)])
    started_s = clock.time_s
    assert not delivery.goodbye(PATH, BODY).accepted
    assert clock.time_s - started_s <= 6.0


def test_goodbye_is_said_to_a_server_that_wants_to_be_left_alone() -> None:
    clock, server = SimulatedClock(), Scripted(busy_for(120.0), ACCEPTED)
    delivery = scripted(clock, server)
    assert not delivery.deliver(PATH, BODY).accepted
    assert delivery.goodbye(PATH, BODY).accepted
