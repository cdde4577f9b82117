"""What really happened, whatever the clock was set to: when each agent reported, who may be found, or missing."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from itertools import pairwise
from typing import Final

from app.index.upkeep import JUMP_TOLERANCE_MS
from app.models.capacity import AgentStatus
from app.models.identity import AgentId

_NOTICED_S: Final = JUMP_TOLERANCE_MS / 1000
"""A smaller step of the clock nobody notices: it counts as time that passed, or did not."""


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
        self._jumps: list[tuple[float, float]] = []
        self._lost_s: dict[AgentId, float] = {}
        self._undated: set[AgentId] = set()
        self._applied_s = 0.0
        self._rebuilt_s = 0.0

    def hear(self, agent_id: AgentId, status: AgentStatus, *, undated: bool) -> None:
        """An agent has reported; undated is an entry that had to be given an id of the future."""
        self.heard_s.setdefault(agent_id, deque(maxlen=8)).append(self.now_s)
        self.said[agent_id] = status
        self._lost_s.pop(agent_id, None)
        (self._undated.add if undated else self._undated.discard)(agent_id)

    def see_jump(self, seconds: float) -> None:
        self._jumps.append((self.now_s, seconds))
        if abs(seconds) > _NOTICED_S:
            self.jumped_s = self.now_s

    def see_applied(self) -> None:
        """Entries were applied."""
        self._applied_s = self.now_s

    def see_rebuilt(self) -> None:
        self._rebuilt_s = self.now_s

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
            seen_s = self._surely_seen_s(agent_id)
            too_long = self.now_s - seen_s > self._longest_s(since_s=seen_s)
            if agent_id in found and (too_long or not (online or lost)):
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
        return sum(seconds for at_s, seconds in self._jumps if at_s >= since_s and 0 < seconds <= up_to_s)

    def _longest_s(self, *, since_s: float) -> float:
        """After so much silence nobody may be found: each jump of the clock gives everybody time to report."""
        since = [seconds for at_s, seconds in self._jumps if at_s >= since_s]
        jumps = sum(abs(seconds) > _NOTICED_S for seconds in since)
        late_s = sum(-seconds for seconds in since if -_NOTICED_S <= seconds < 0)
        return self._limit_s * (1 + jumps) + late_s

    def _surely_seen_s(self, agent_id: AgentId) -> float:
        """The latest that the agent can count as seen.

        An entry that had to be given an id of the future counts as received when it was applied. Of what was lost
        with Redis the record may say the same; then it counts as seen when the index was rebuilt.
        """
        seen_s = self.heard_s[agent_id][-1]
        if agent_id in self._undated:
            seen_s = max(seen_s, self._applied_s)
        if agent_id in self._lost_s:
            seen_s = max(seen_s, self._lost_s[agent_id], self._rebuilt_s)
        return seen_s
