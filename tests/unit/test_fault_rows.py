"""Every row of docs/reliability.md has a test, and every fault test a row."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.faults.command import main
from tests.faults.rows import KEPT_FOR_CLAIMS, ROWS, row_of

FOLDER = Path(__file__).parents[1] / "faults"

OF_NO_SINGLE_ROW = {"test_machine", "test_simulation"}
"""Random histories of everything at once."""

STILL_TO_COME: set[int] = set()


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
    assert ROWS.keys() - tested == STILL_TO_COME


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
