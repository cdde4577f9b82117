"""What every lookup must answer: computed in plain Python from the figures, never from a store."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from copy import copy
from itertools import zip_longest
from typing import Final

import msgspec

from app.models.identity import AgentId
from tests.bench.fleets import Figures, Fleet
from tests.bench.insights import right_answer
from tests.bench.questions import INSIGHT_KINDS, Answer, Promise, Question, Row, Told

ASKED_AGENTS: Final = 64
"""How many agents the single-agent calls go round."""


class WrongAnswerError(AssertionError):
    """A side answered something that was never true. Ends the run: its times mean nothing."""


class Asked(msgspec.Struct, frozen=True):
    """One lookup as it was made: by whom, what, and what came back; `turn` tells which agent was asked for."""

    side: str
    question: Question
    turn: int
    answer: Answer
    returned_at: float
    promise: Promise


class Oracle:
    """The fleet's state after any number of heartbeats, and its answers to the questions.

    Heartbeat number n (from 0) is that of agent n modulo size. A store that applies them in order shows the state
    after some prefix of them; `check` finds a prefix at which the answer was right.
    """

    def __init__(self, fleet: Fleet, questions: Sequence[Question]) -> None:
        self._fleet = fleet
        self.applied = 0
        self.agent_ids = [fleet.agent_id(number) for number in range(fleet.size)]
        self._numbers = {agent_id: number for number, agent_id in enumerate(self.agent_ids)}
        self._figures = [fleet.figures(number, 0) for number in range(fleet.size)]
        if len(self._numbers) != fleet.size:
            raise ValueError("two agents have the same id")
        looked_up = [question for question in questions if question.kind not in INSIGHT_KINDS]
        thresholds = {(question.min_vram_gb, question.min_cores) for question in looked_up}
        self._matches = {threshold: self._matching(*threshold) for threshold in thresholds}
        self._changes = dict.fromkeys(thresholds, 0)
        self._told: dict[str, tuple[int, Told]] = {}
        self.asked_ids = [self.agent_ids[i * fleet.size // ASKED_AGENTS] for i in range(ASKED_AGENTS)]

    def fork(self) -> Oracle:
        """Another one with the same state, for another store, which will go its own way."""
        other = copy(self)
        other._figures = list(self._figures)
        other._matches = {threshold: list(matches) for threshold, matches in self._matches.items()}
        other._changes = dict(self._changes)
        other._told = dict(self._told)
        return other

    def asked_id(self, turn: int) -> str:
        return self.asked_ids[turn % ASKED_AGENTS]

    def advance(self) -> None:
        """Applies one more heartbeat."""
        number, beat = self.applied % self._fleet.size, self.applied // self._fleet.size + 1
        agent_id, old, new = self.agent_ids[number], self._figures[number], self._fleet.figures(number, beat)
        self._figures[number] = new
        for threshold, matches in self._matches.items():
            fitted, fit = fits(old, *threshold), fits(new, *threshold)
            if fitted:
                del matches[bisect_left(matches, (old.vram_gb, agent_id))]
            if fit:
                insort(matches, (new.vram_gb, agent_id))
            self._changes[threshold] += fitted or fit
        self.applied += 1

    def advance_to(self, applied: int) -> None:
        while self.applied < applied:
            self.advance()

    def pass_over(self, heartbeats: int) -> None:
        """Counts heartbeats that repeated what was reported before."""
        self.applied += heartbeats

    def answer(self, question: Question, turn: int = 0) -> Answer:
        """The right answer now, ties by descending id."""
        if question.kind == "one":
            # A single agent's answer names no pool.
            agent_id, _, vram_gb, cores, load = self._row(self.asked_id(turn))
            return ((agent_id, "", vram_gb, cores, load),)
        if question.kind in INSIGHT_KINDS:
            return self._tell(question)
        matches = self._matches[question.min_vram_gb, question.min_cores]
        if question.kind == "count":
            return len(matches)
        return tuple(self._row(agent_id) for _, agent_id in reversed(matches[-question.limit :]))

    def check(self, asked: Asked, *, sent: int) -> None:
        """Goes on to the first state, from the present one up to `sent` heartbeats, in which the answer is right.

        Raises:
            WrongAnswerError: there is none.
        """
        while not self._right(asked, changing=sent > self.applied):
            before = self._stamp(asked)
            while self._stamp(asked) == before:
                if self.applied >= sent:
                    difference = _difference(asked.answer, self.answer(asked.question, asked.turn))
                    raise WrongAnswerError(
                        f"{asked.side}, {asked.question.name}, {self._fleet.size:,} agents of the fleet "
                        f"{self._fleet.name} after {self.applied:,} heartbeats: {difference}"
                    )
                self.advance()

    def _tell(self, question: Question) -> Told:
        at, told = self._told.get(question.name, (-1, None))
        if told is None or at != self.applied:
            told = right_answer(question, self._fleet, self.agent_ids, self._figures)
            self._told[question.name] = (self.applied, told)
        return told

    def _stamp(self, asked: Asked) -> object:
        """Differs once the answer may have changed."""
        if asked.question.kind == "one":
            return self._figures[self._numbers[AgentId(self.asked_id(asked.turn))]]
        return self._changes[asked.question.min_vram_gb, asked.question.min_cores]

    def _right(self, asked: Asked, *, changing: bool) -> bool:
        right = self.answer(asked.question, asked.turn)
        if not (isinstance(right, tuple) and isinstance(asked.answer, tuple)):
            return right == asked.answer
        if asked.promise == "exact" or asked.question.kind == "one":
            return right == asked.answer
        if [row[2] for row in asked.answer] != [row[2] for row in right]:
            return False
        if len({row[0] for row in asked.answer}) != len(right):
            return False
        in_parts = changing and asked.promise == "parts"
        return all(self._may_stand(row, asked.question, in_parts=in_parts) for row in asked.answer)

    def _may_stand(self, row: Row, question: Question, *, in_parts: bool) -> bool:
        """Whether the row is now true of an agent that fits; its VRAM is known to be among the best."""
        if row[0] not in self._numbers:
            return False
        true = self._row(row[0])
        if true[3] < question.min_cores or true[2] != row[2]:
            return False
        return in_parts or true[:4] == row[:4]

    def _row(self, agent_id: str) -> Row:
        number = self._numbers[AgentId(agent_id)]
        figures = self._figures[number]
        return (agent_id, self._fleet.pool(number), figures.vram_gb, figures.cores, figures.load)

    def _matching(self, vram_gb: float, cores: int) -> list[tuple[float, str]]:
        return sorted(
            (figures.vram_gb, agent_id)
            for agent_id, figures in zip(self.agent_ids, self._figures, strict=True)
            if fits(figures, vram_gb, cores)
        )


def fits(figures: Figures, vram_gb: float, cores: int) -> bool:
    return figures.vram_gb >= vram_gb and figures.cores >= cores


def _difference(answer: Answer, right: Answer) -> str:
    if not (isinstance(answer, tuple) and isinstance(right, tuple)):
        return f"{answer} instead of {right}"
    for place, (got, wanted) in enumerate(zip_longest(answer, right), start=1):
        if got != wanted:
            return f"row {place} is {got} instead of {wanted}"
    return "the rows are right, but not one of another"
