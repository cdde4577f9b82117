"""The loop's own decisions; test_day.py has its life with everything else."""

from __future__ import annotations

import random

import pytest

from app.models.capacity import AgentStatus
from tests.simulated_time import SimulatedClock, SimulatedPause
from workers.host_agent.agent import Agent
from workers.host_agent.clock import StopRequestedError
from workers.host_agent.delivery import Outcome
from workers.host_agent.heartbeat import Report
from workers.host_agent.schedule import Schedule


class Source:
    def __init__(self) -> None:
        self.seq = 0

    def report(self) -> Report:
        self.seq += 1
        return Report(boot_id="b", seq=self.seq, sent_at="", resource_metrics=None)

    def goodbye(self) -> Report:
        return Report(boot_id="b", seq=10**6, sent_at="", resource_metrics=None, status=AgentStatus.OFFLINE)


class Sender:
    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.delivered = 0
        self.goodbyes = 0

    def deliver(self, path: str, body: bytes) -> Outcome:
        assert path == "/api/v1/agents/me/heartbeat"
        assert body
        self.delivered += 1
        return self.outcome

    def goodbye(self, path: str, body: bytes) -> Outcome:
        assert path == "/api/v1/agents/me/heartbeat"
        assert b"offline" in body
        self.goodbyes += 1
        return self.outcome


def run(answering: Outcome | Sender, *, for_s: float) -> Sender:
    clock, rng = SimulatedClock(), random.Random(1)
    sender = answering if isinstance(answering, Sender) else Sender(answering)
    Agent(
        "me",
        source=Source(),
        sender=sender,
        schedule=Schedule(30.0, rng),
        clock=clock,
        pause=SimulatedPause(clock, clock.time_s + for_s, []),
        rng=rng,
    ).run()
    return sender


def test_the_first_heartbeat_comes_at_once() -> None:
    assert run(Outcome(accepted=True), for_s=2).delivered == 1


def test_goodbye_is_said_by_those_who_arrived() -> None:
    assert run(Outcome(accepted=True), for_s=100).goodbyes == 1
    assert run(Outcome(), for_s=100).goodbyes == 0
    assert run(Outcome(refused=True), for_s=100).goodbyes == 0


def test_goodbye_is_said_by_those_who_may_have_arrived() -> None:
    assert run(Outcome(maybe_taken=True), for_s=100).goodbyes == 1

    class GivenUp(Sender):
        def deliver(self, path: str, body: bytes) -> Outcome:
            super().deliver(path, body)
            raise StopRequestedError

    assert run(GivenUp(Outcome(accepted=True)), for_s=100).goodbyes == 1


def test_a_refused_heartbeat_is_followed_by_the_next_at_the_usual_time() -> None:
    """Refused for what it says: a backoff would not help, and haste even less."""
    assert run(Outcome(refused=True), for_s=301).delivered in (10, 11)


def test_a_goodbye_that_does_not_arrive_is_told(caplog: pytest.LogCaptureFixture) -> None:
    accepted = Outcome(accepted=True)

    class Breaking(Sender):
        def goodbye(self, path: str, body: bytes) -> Outcome:
            super().goodbye(path, body)
            return Outcome(detail="away")

    clock, rng = SimulatedClock(), random.Random(1)
    pause = SimulatedPause(clock, clock.time_s + 10, [])
    Agent(
        "me",
        source=Source(),
        sender=Breaking(accepted),
        schedule=Schedule(30.0, rng),
        clock=clock,
        pause=pause,
        rng=rng,
    ).run()
    assert "away" in caplog.text


def test_a_clone_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    run(Outcome(accepted=True, cloned=True), for_s=200)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "identity.json" in caplog.text
