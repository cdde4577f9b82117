"""The benchmark's oracle, its verdicts and its plots: what has to be right before any figure is believed."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable

import pytest

from tests.bench.fleets import FLEETS, Fleet, make_fleet
from tests.bench.lookups import Line, Phase
from tests.bench.measure import Summary
from tests.bench.oracle import Asked, Oracle, WrongAnswerError
from tests.bench.plots import bar_plot, line_plot
from tests.bench.pressure import Sent
from tests.bench.questions import COUNT, ONE, TOP_10, TOP_100, Answer, Promise, Question, Row
from tests.bench.results import Machine, Results
from tests.bench.targets import targets

QUESTIONS = (TOP_10, TOP_100, COUNT, ONE)


@pytest.fixture
def fleet() -> Fleet:
    return make_fleet("mixed", 500)


@pytest.fixture
def oracle(fleet: Fleet) -> Oracle:
    return Oracle(fleet, QUESTIONS)


def asked(answer: Answer, question: Question = TOP_10, *, promise: Promise = "exact") -> Asked:
    return Asked("a side", question, 0, answer, 0.0, promise)


def rows(oracle: Oracle, question: Question = TOP_10) -> tuple[Row, ...]:
    answer = oracle.answer(question)
    assert isinstance(answer, tuple)
    return answer


@pytest.mark.parametrize("name", FLEETS)
@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.name)
def test_the_oracle_agrees_with_a_plain_filter_after_any_number_of_heartbeats(
    name: str, question: Question
) -> None:
    fleet = make_fleet(name, 300)
    oracle = Oracle(fleet, QUESTIONS)
    for heartbeats in (0, 1, 299, 300, 750):
        oracle.advance_to(heartbeats)
        figures = [
            fleet.figures(number, (heartbeats - number - 1) // fleet.size + 1) for number in range(fleet.size)
        ]
        if question.kind == "one":
            number = oracle.agent_ids.index(fleet.agent_id(0))
            expected: Answer = ((oracle.asked_id(0), "", *figures[number]),)
        else:
            found = sorted(
                (
                    (fleet.agent_id(number), fleet.pool(number), *each)
                    for number, each in enumerate(figures)
                    if each.vram_gb >= question.min_vram_gb and each.cores >= question.min_cores
                ),
                key=lambda row: (row[2], row[0]),
                reverse=True,
            )
            expected = len(found) if question.kind == "count" else tuple(found[: question.limit])
        assert oracle.answer(question) == expected


LIES: dict[str, Callable[[tuple[Row, ...]], tuple[Row, ...]]] = {
    "short": lambda right: right[:-1],
    "empty": lambda right: (),
    "swapped": lambda right: (right[1], right[0], *right[2:]),
    "twice the same": lambda right: (right[0], right[0], *right[2:]),
    "another's figures": lambda right: ((right[1][0], *right[0][1:]), *right[1:]),
    "stale load": lambda right: ((*right[0][:4], right[0][4] + 1), *right[1:]),
    "next best left out": lambda right: (*right[:3], *right[4:], right[3]),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_an_answer_that_is_not_right_ends_the_run(
    oracle: Oracle, lie: Callable[[tuple[Row, ...]], tuple[Row, ...]]
) -> None:
    with pytest.raises(WrongAnswerError):
        oracle.check(asked(lie(rows(oracle))), sent=0)


@pytest.mark.parametrize("promise", ["ties", "parts"])
@pytest.mark.parametrize("lie", ["short", "empty", "twice the same", "another's figures", "next best left out"])
def test_whoever_may_order_ties_as_he_likes_may_do_nothing_else(
    oracle: Oracle, lie: str, promise: Promise
) -> None:
    with pytest.raises(WrongAnswerError):
        oracle.check(asked(LIES[lie](rows(oracle)), promise=promise), sent=0)


def test_what_is_read_in_two_steps_may_mix_moments_only_while_something_changes(oracle: Oracle) -> None:
    agent_id, pool, vram_gb, cores, load = rows(oracle)[0]
    mixed = ((agent_id, pool, vram_gb, cores + 1, load), *rows(oracle)[1:])
    oracle.check(asked(mixed, promise="parts"), sent=1)
    with pytest.raises(WrongAnswerError):
        oracle.check(asked(mixed, promise="ties"), sent=1)
    with pytest.raises(WrongAnswerError):
        oracle.check(asked(mixed, promise="parts"), sent=oracle.applied)


def test_an_answer_of_a_moment_in_between_is_right(oracle: Oracle) -> None:
    later = oracle.fork()
    later.advance_to(137)
    oracle.check(asked(later.answer(TOP_100), TOP_100), sent=200)
    assert oracle.applied <= 137
    assert oracle.answer(TOP_100) == later.answer(TOP_100)


def test_an_answer_from_the_future_is_wrong(oracle: Oracle) -> None:
    later = oracle.fork()
    later.advance_to(400)
    with pytest.raises(WrongAnswerError):
        oracle.check(asked(later.answer(TOP_100), TOP_100), sent=200)


def test_an_answer_from_before_the_answer_before_is_wrong(oracle: Oracle) -> None:
    first = oracle.answer(TOP_100)
    later = oracle.fork()
    later.advance_to(300)
    oracle.check(asked(later.answer(TOP_100), TOP_100), sent=500)
    with pytest.raises(WrongAnswerError):
        oracle.check(asked(first, TOP_100), sent=500)


def test_what_was_sent_by_a_moment_bounds_what_can_be_shown() -> None:
    sent = Sent([10.0, 10.5, 11.0], [100, 120, 140])
    assert [sent.until(moment) for moment in (9.0, 10.0, 10.7, 99.0)] == [100, 100, 120, 140]


def line(side: str, p50_ms: float, *, fleet: str = "mixed", phase: Phase = "at rest") -> Line:
    summary = Summary(calls=1, p50_ms=p50_ms, p99_ms=2 * p50_ms, rounds_ms=[p50_ms])
    return Line(fleet=fleet, size=100_000, phase=phase, side=side, question=TOP_10.name, summary=summary)


def results(*lines: Line) -> Results:
    machine = Machine(processor="", cores=1, memory_gb=1.0, system="", versions={})
    return Results(started="2026-11-23T00:00:00+00:00", machine=machine, lines=list(lines))


def test_a_verdict_names_the_worst_fleet() -> None:
    found = results(
        line("index", 0.1),
        line("index", 0.2, fleet="unlucky"),
        line("index", 0.11, fleet="pools"),
    )
    verdict = next(target for target in targets(found) if target.what.startswith("worst fleet"))
    assert (verdict.measured, verdict.met) == ("2.00x (unlucky, top 10)", False)


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    assert {target.met for target in targets(results())} == {None}


@pytest.mark.parametrize(
    "drawing",
    [
        line_plot("Title <&>", "What it says", {"one": [(1e3, 0.1), (1e6, 0.2)], "two": [(1e3, 5.0)]}),
        bar_plot("Title", "What it says", {"mixed": {"index": 0.1, "btree": 30.0}, "unlucky": {"index": 0.2}}),
    ],
    ids=["lines", "bars"],
)
def test_plots_are_well_formed_and_say_what_they_show(drawing: str) -> None:
    root = ET.fromstring(drawing)
    texts = [element.text for element in root.iter() if element.tag.endswith(("}title", "}desc"))]
    assert len(texts) == 2
    assert all(texts)
    assert "prefers-color-scheme: dark" in drawing
