"""Asks all sides in turn, times every call, and has every answer checked."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import msgspec

from tests.bench.oracle import Asked, Oracle
from tests.bench.pressure import Sent
from tests.bench.questions import Question
from tests.bench.sides import Side, Timed

_MOST_CALLS: Final = 200
_WARM_UP: Final = 7
"""Postgres plans a prepared statement anew five times before it may settle on one plan."""

_TOO_SLOW_TO_REPEAT_S: Final = 0.02


class Summary(msgspec.Struct, frozen=True):
    """What is kept of all calls of one side with one question.

    Attributes:
        p50_ms: median of the rounds' medians.
        p99_ms: over all calls of all rounds.
        rounds_ms: each round's median.
    """

    calls: int
    p50_ms: float
    p99_ms: float
    rounds_ms: list[float]


class Measurement:
    """A fleet at rest or under load: asks, times, checks.

    `oracles` holds for each side the oracle of the store that it asks; sides of one store share one.
    """

    def __init__(self, oracles: Mapping[str, Oracle], *, block_s: float) -> None:
        self._oracles = oracles
        self._block_s = block_s
        self._rounds: dict[tuple[str, str], list[list[float]]] = {}
        self._usual_s: dict[tuple[str, str], float] = {}
        self._asked = 0
        self._shift = 0
        self._unchecked: list[Asked] = []
        self.checked = 0

    def warm_up(self, sides: Sequence[Side], questions: Sequence[Question]) -> None:
        """Lets connections, plans and caches settle, and learns how many calls fit into a block."""
        for side in sides:
            for question in questions:
                results = self._ask(side, question, 1)
                usual_s = results[0].took_s
                if usual_s < _TOO_SLOW_TO_REPEAT_S:
                    results = self._ask(side, question, _WARM_UP)
                    usual_s = statistics.median(result.took_s for result in results)
                self._usual_s[side.name, question.name] = usual_s
        self.check()

    def probe(self, sides: Sequence[Side], questions: Sequence[Question]) -> None:
        """Asks everything once, for the sake of the answers."""
        for side in sides:
            for question in questions:
                self._ask(side, question, 1)
        self.check()

    def turn_s(self, sides: Sequence[Side], questions: Sequence[Question]) -> float:
        """About how long one turn takes."""
        return sum(
            max(self._block_s, self._usual_s[side.name, question.name]) for side in sides for question in questions
        )

    def begin_round(self) -> None:
        for rounds in self._rounds.values():
            rounds.append([])

    def turn(self, sides: Sequence[Side], questions: Sequence[Question]) -> None:
        """Each side's block of calls for each question; who comes first changes from turn to turn."""
        self._shift += 1
        for question in questions:
            for i in range(len(sides)):
                side = sides[(i + self._shift) % len(sides)]
                fitting = int(self._block_s / max(1e-6, self._usual_s[side.name, question.name]))
                results = self._ask(side, question, max(1, min(_MOST_CALLS, fitting)))
                rounds = self._rounds.setdefault((side.name, question.name), [[]])
                rounds[-1].extend(result.took_s for result in results)

    def check(self, sent: Sent | None = None) -> None:
        """Checks every answer since the last check.

        Args:
            sent: the heartbeats applied meanwhile; None: nothing changed, and there is one right answer only.

        Raises:
            WrongAnswerError: an answer that was right at no moment.
        """
        for asked in self._unchecked:
            oracle = self._oracles[asked.side]
            oracle.check(asked, sent=oracle.applied if sent is None else sent.until(asked.returned_at))
        self.checked += len(self._unchecked)
        self._unchecked.clear()

    def summaries(self) -> dict[tuple[str, str], Summary]:
        """By (side, question)."""
        return {key: _summary(rounds) for key, rounds in self._rounds.items()}

    def _ask(self, side: Side, question: Question, calls: int) -> Sequence[Timed]:
        turns = range(self._asked, self._asked + calls)
        self._asked += calls
        with _no_collection():
            results = side.ask(question, turns)
        for turn, result in zip(turns, results, strict=True):
            answer = side.read(question, result.raw)
            if answer is not None:
                self._unchecked.append(Asked(side.name, question, turn, answer, result.returned_at, side.promise))
        return results


def _summary(rounds: Sequence[Sequence[float]]) -> Summary:
    medians_ms = [statistics.median(each) * 1000 for each in rounds if each]
    everything = sorted(took_s for each in rounds for took_s in each)
    return Summary(
        calls=len(everything),
        p50_ms=round(statistics.median(medians_ms), 4),
        p99_ms=round(percentile(everything, 0.99) * 1000, 4),
        rounds_ms=[round(each, 4) for each in medians_ms],
    )


def percentile(ascending: Sequence[float], share: float) -> float:
    return ascending[min(len(ascending) - 1, int(len(ascending) * share))]


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keeps the garbage collector, with its walk over a whole fleet, out of the times."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def until(moment: float) -> Iterator[None]:
    """Yields at least once, and again until the moment (`perf_counter`) has passed."""
    yield
    while time.perf_counter() < moment:
        yield
