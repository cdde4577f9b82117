"""The agent's loop: wait, look, deliver; for years."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Final, Protocol

from workers.host_agent.clock import Clock, Pause, StopRequestedError
from workers.host_agent.delivery import Outcome, Sender
from workers.host_agent.heartbeat import Report, pack
from workers.host_agent.schedule import Schedule

_FIRST_SPREAD_S: Final = 1.0
_log = logging.getLogger("headroom.agent")


class Source(Protocol):
    def report(self) -> Report: ...
    def goodbye(self) -> Report: ...


class Agent:
    """Every try sends a fresh heartbeat: one that could not be delivered is replaced by what is true now.

    `alive` is called between waits, for a watchdog.
    """

    def __init__(
        self,
        agent_id: str,
        *,
        source: Source,
        sender: Sender,
        schedule: Schedule,
        clock: Clock,
        pause: Pause,
        rng: random.Random,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self._path = f"/api/v1/agents/{agent_id}/heartbeat"
        self._source = source
        self._sender = sender
        self._schedule = schedule
        self._clock = clock
        self._pause = pause
        self._rng = rng
        self._alive = alive
        self._arrived = False
        self._cloned = False

    def run(self) -> None:
        """Returns when it is asked to end, after the goodbye."""
        # A room of machines that get their power back together does not report in the same millisecond.
        spread_s = min(_FIRST_SPREAD_S, self._schedule.interval_s / 10)
        due_s = self._clock.now_s() + self._rng.uniform(0, spread_s)
        while self._wait_until(due_s):
            try:
                due_s = self._round()
            except StopRequestedError:
                break
        self._say_goodbye()

    def _wait_until(self, due_s: float) -> bool:
        """False when the agent is to end."""
        while not self._pause.stopping:
            self._alive()
            left_s = due_s - self._clock.now_s()
            if left_s <= 0:
                return True
            self._pause.wait(left_s)
        return False

    def _round(self) -> float:
        """One heartbeat; returns when the next is due."""
        started_s = self._clock.now_s()
        report = self._source.report()
        if self._pause.stopping:
            raise StopRequestedError
        try:
            outcome = self._sender.deliver(self._path, pack(report))
        except StopRequestedError:
            # It may have arrived before it was given up.
            self._arrived = True
            raise
        now_s = self._clock.now_s()
        self._arrived = self._arrived or outcome.accepted or outcome.maybe_taken
        self._tell_clone(outcome)
        if outcome.accepted or outcome.refused:
            return self._schedule.after_answer(
                started_s=started_s, now_s=now_s, next_heartbeat_s=outcome.next_heartbeat_s
            )
        return self._schedule.after_failure(now_s=now_s, retry_after_s=outcome.retry_after_s)

    def _tell_clone(self, outcome: Outcome) -> None:
        if outcome.cloned and not self._cloned:
            _log.error(
                "Another machine reports with this identity. If this disk was copied from it, "
                "stop this agent, delete identity.json in its state directory, and start it again"
            )
        self._cloned = outcome.cloned

    def _say_goodbye(self) -> None:
        """A machine that cannot have arrived does not take its leave: that would only register it."""
        if not self._arrived:
            return
        outcome = self._sender.goodbye(self._path, pack(self._source.goodbye()))
        if not outcome.accepted:
            _log.warning("Goodbye not delivered: %s; the server will notice the silence", outcome.detail)
