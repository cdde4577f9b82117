"""What really happened, whatever the clock was set to: when each agent reported, who may be found, or missing."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from app.index.upkeep import JUMP_TOLERANCE_MS
from app.models.capacity import AgentStatus
from app.models.identity import AgentId

_NOTICED_S: Final = JUMP_TOLERANCE_MS / 1000
"""A smaller step of the clock nobody notices: it counts as time that passed, or did not."""


@dataclass
class _Jump:
    """The clock was set.

    Attributes:
        swept_s: when the silent were taken out for the last time before, with nothing left to be applied.
        noticed_s: when somebody looked; None if nobody has.
    """

    at_s: float
    seconds: float
    swept_s: float
    noticed_s: float | None = None

    @property
    def is_noticed(self) -> bool:
        """Whether it is, or will be."""
        return abs(self.seconds) > _NOTICED_S


class Witness:
    """Judges by steady time whom a search shows and who is declared offline.

    Attributes:
        now_s: seconds since the beginning.
        heard_s: when each agent reported of late.
        said: as what each agent last reported itself.
        jumped_s: when the clock last jumped so far that it was noticed, or will be.
    """

    def __init__(self, offline_after_s: float) -> None:
        self.now_s = 0.0
        self.heard_s: dict[AgentId, deque[float]] = {}
        self.said: dict[AgentId, AgentStatus] = {}
        self.jumped_s = -offline_after_s
        self._limit_s = offline_after_s
        self._jumps: list[_Jump] = []
        self._lost_s: dict[AgentId, float] = {}
        self._undated: set[AgentId] = set()
        self._applied_s: dict[AgentId, float] = {}
        self._swept_s = 0.0
        self._rebuilt_s = 0.0

    def hear(self, agent_id: AgentId, status: AgentStatus, *, undated: bool) -> None:
        """An agent has reported; undated is an entry that had to be given an id of the future."""
        self.heard_s.setdefault(agent_id, deque(maxlen=8)).append(self.now_s)
        self.said[agent_id] = status
        self._lost_s.pop(agent_id, None)
        self._applied_s.pop(agent_id, None)
        (self._undated.add if undated else self._undated.discard)(agent_id)

    def see_jump(self, seconds: float) -> None:
        self._jumps.append(_Jump(at_s=self.now_s, seconds=seconds, swept_s=self._swept_s))
        if self._jumps[-1].is_noticed:
            self.jumped_s = self.now_s

    def see_noticed(self) -> None:
        """Somebody has looked at the clock."""
        for jump in reversed(self._jumps):
            if jump.noticed_s is not None:
                break
            jump.noticed_s = self.now_s

    def see_reaped(self, *, behind: bool) -> None:
        """A reaper has looked at the clock and taken the silent out; behind: something was yet to be applied."""
        self.see_noticed()
        if not behind:
            self._swept_s = self.now_s

    def wait_for(self, agent_ids: Iterable[AgentId]) -> None:
        """What these last reported is not applied yet, and has an id of the future since the clock was set."""
        self._undated.update(agent_ids)

    def undated(self) -> list[AgentId]:
        """Whose last heartbeat will count as received when it is applied."""
        return list(self._undated)

    def see_applied(self, agent_id: AgentId) -> None:
        """That heartbeat was applied."""
        self._undated.discard(agent_id)
        self._applied_s[agent_id] = self.now_s

    def see_rebuilt(self, undated: Iterable[AgentId]) -> None:
        """The index was filled from the record: at the latest now these count as seen."""
        self._rebuilt_s = self.now_s
        self._applied_s.update(dict.fromkeys(undated, self.now_s))

    def lose(self, agent_ids: Iterable[AgentId]) -> None:
        """What these last reported, or when, is known to nobody any more."""
        self._lost_s.update(dict.fromkeys(agent_ids, self.now_s))

    def has_lost(self, agent_id: AgentId) -> bool:
        return agent_id in self._lost_s

    def misjudged(self, found: Collection[AgentId]) -> list[str]:
        """Agents that a search shows though they have long been silent, or hides though they just reported."""
        wrong = []
        for agent_id, heard_s in self.heard_s.items():
            silent_s = self.now_s - heard_s[-1]
            online, lost = self.said[agent_id] is AgentStatus.ONLINE, self.has_lost(agent_id)
            if agent_id in found and (self.now_s > self._alive_until_s(agent_id) or not (online or lost)):
                wrong.append(f"{agent_id}: found after {silent_s} s of silence, last {self.said[agent_id]}")
            early_s = self._stepped_s(since_s=heard_s[-1], up_to_s=_NOTICED_S)
            if agent_id not in found and online and silent_s + early_s < self._limit_s and not lost:
                wrong.append(f"{agent_id}: not found {silent_s} s after its heartbeat")
        return wrong

    def was_silent(self, agent_id: AgentId, *, applied: bool) -> bool:
        """Whether it may be declared offline now: for its present silence; or, where the heartbeat that ended
        a silence has not been applied yet, for one of late.
        """
        heard = [*self.heard_s[agent_id], self.now_s]
        silences = list(pairwise(heard[-2:] if applied else heard))
        return any(
            end_s - start_s + self._stepped_s(since_s=start_s, up_to_s=_NOTICED_S) >= self._limit_s
            for start_s, end_s in silences
        )

    def _stepped_s(self, *, since_s: float, up_to_s: float) -> float:
        """By how much steps of the clock forwards of at most so many seconds made silence look longer."""
        return sum(jump.seconds for jump in self._jumps if jump.at_s >= since_s and 0 < jump.seconds <= up_to_s)

    def _alive_until_s(self, agent_id: AgentId) -> float:
        """The latest at which the agent may be found.

        Once a jump of the clock is noticed, everybody has time to report who was not taken out as silent before:
        because it was not for long, because what was received in time was still being applied, or because nobody
        had swept.
        """
        until_s = self._surely_seen_s(agent_id) + self._limit_s
        for jump in self._jumps:
            if jump.at_s < self.heard_s[agent_id][-1] or until_s < jump.swept_s:
                continue
            if jump.is_noticed:
                noticed_s = self.now_s if jump.noticed_s is None else jump.noticed_s
                until_s = max(until_s, noticed_s + self._limit_s)
            elif jump.seconds < 0:
                until_s -= jump.seconds
        return until_s

    def _surely_seen_s(self, agent_id: AgentId) -> float:
        """The latest that the agent can count as seen.

        An entry that had to be given an id of the future, or whose id was of the future when it was applied,
        counts as received then. Of what was lost with Redis the record may say the same; then it counts as seen
        when the index was rebuilt.
        """
        seen_s = max(self.heard_s[agent_id][-1], self._applied_s.get(agent_id, 0.0))
        if agent_id in self._lost_s:
            seen_s = max(seen_s, self._lost_s[agent_id], self._rebuilt_s)
        return seen_s
