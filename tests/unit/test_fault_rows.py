"""Every row of docs/reliability.md has a test, and every fault test a row."""

from __future__ import annotations

import ast
import io
from pathlib import Path

import pytest
from rich.console import Console

from app.models.identity import AgentId
from tests.faults.command import main
from tests.faults.conftest import Row
from tests.faults.fleet import Lookups
from tests.faults.page import DOCS, read_figures, with_figures, write_figures
from tests.faults.recovery import Answered, FlushResult, OutageResult, RecoveryResult
from tests.faults.rows import KEPT_FOR_CLAIMS, ROWS, row_of
from tests.faults.running import RowResult, RowsResult, rows_table
from tests.faults.simulation import History, Simulated
from tests.faults.storm import StormResult, storm_table
from tests.faults.telling import Ended
from tests.servers import free_port

FOLDER = Path(__file__).parents[1] / "faults"

OF_NO_SINGLE_ROW = {"test_machine", "test_simulation"}
"""Random histories of everything at once."""


def names_of_tests() -> list[str]:
    return [
        node.name
        for path in sorted(FOLDER.glob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    ]


def test_rows_are_all_but_those_about_claims() -> None:
    assert sorted([*ROWS, *KEPT_FOR_CLAIMS]) == list(range(1, 50))
    assert len(ROWS) == 42


def test_every_row_has_a_test() -> None:
    tested = {row_of(name) for name in names_of_tests()}
    assert ROWS.keys() - tested == set()


def test_every_fault_test_has_a_row() -> None:
    lost = {name for name in names_of_tests() if row_of(name) not in ROWS}
    assert lost == OF_NO_SINGLE_ROW


@pytest.mark.parametrize("arguments", ["6", "50", "x", "3-", "--simulate 3", "--seed 1", "--hours 0"])
def test_what_is_no_row_is_refused(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(arguments.split())
    assert refused.value.code == 2
    assert capsys.readouterr().err


def test_help_shows_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert "scripts/faults 5 22-27" in shown
    assert "--seed" in shown


def test_list_shows_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(ROWS)


def test_a_row_that_did_not_hold_and_one_without_a_test_are_shown_as_that() -> None:
    ended = Ended(5, "test_row_05_x[a]", "it was [broken]", "", held=False, took_s=1.0, error="no [b] there")
    result = RowsResult(
        took_s=1.0,
        rows=[RowResult(5, "x", held=False, tests=[ended]), RowResult(7, "another fault", held=False, tests=[])],
    )
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(rows_table(result))
    shown = console.export_text()
    assert "it was [broken]" in shown
    assert "no [b] there" in shown
    assert "there is no test" in shown
    assert result.verdict == "2 rows, 0 held"


def test_a_row_in_which_a_lookup_got_no_answer_does_not_hold() -> None:
    agent_id = AgentId("00000000-0000-4000-8000-000000000001")
    planner = Lookups(free_port(), [agent_id], known=[agent_id])
    row = Row(5, "nobody listens")
    row.watch(planner)
    row.require_any_answer()
    planner.ask(agent_id)
    assert planner.answers[0].status == 0
    with pytest.raises(AssertionError, match="1 of 1 lookups got no answer"):
        row.require_answers()
    assert row.took_ms() == []


def test_the_page_shows_the_figures_that_are_kept() -> None:
    text = (DOCS / "reliability.md").read_text(encoding="utf-8")
    assert with_figures(text, read_figures()) == text, "run scripts/faults --page"


def test_the_page_takes_every_figure(tmp_path: Path) -> None:
    (tmp_path / "reliability.md").write_bytes((DOCS / "reliability.md").read_bytes())
    test = Ended(
        5,
        "test_row_05_x",
        "done",
        "seen",
        held=False,
        took_s=1.0,
        error="e",
        lookups=9,
        unanswered=6_543,
        p99_ms=3.21,
    )
    answered = Answered(lookups=3, refused=0, unanswered=2_345, p99_ms=1.0, slowest_ms=12.0)
    results: list[RowsResult | Simulated | StormResult | RecoveryResult] = [
        RowsResult(took_s=60.0, rows=[RowResult(5, "x", held=False, tests=[test])]),
        Simulated(took_s=60.0, histories=[History(1, 20, 1.5, 180, 45, 2, {"clock": 7_777}, [])]),
        *[
            StormResult(
                mode, 9.0, 1, {"api": 3, "redis": 4}, 8_765_432, lost, 0, {0: 1}, [], 0.1, 1, 1.0, 1.0, 4_321
            )
            for lost, mode in enumerate(["", "always", "everysec", "everysec-cut", "none"])
        ],
        RecoveryResult(FlushResult(7, 4.56, 7, 0, answered), OutageResult(6, 5_432, 0, 9.8, 0, answered)),
    ]
    for result in results:
        page = write_figures(result, docs=tmp_path).read_text()
    for shown in (
        "1 row, 0 held",
        "| **no** | 3.2 ms |",
        "6,543",
        "clock 7,777",
        "8,765,432",
        "5,432",
        "4.6 s",
        "12 ms",
        "2,345",
        "4,321",
    ):
        assert shown in page
    assert "not yet" not in page
    assert "Not measured yet" not in page


@pytest.mark.parametrize(("unanswered", "told"), [(None, "not counted"), (0, "0"), (3, "3")])
def test_what_was_not_counted_is_not_told_as_none(unanswered: int | None, told: str) -> None:
    result = StormResult("", 9.0, 1, {"api": 3}, 7, 0, 0, {}, [], 0.1, 5, 1.0, 1.0, unanswered)
    assert result.verdict.endswith(f"5 lookups, without an answer: {told}")
    assert told in list(storm_table(result).columns[1].cells)
