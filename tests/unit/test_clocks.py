"""What must not be late is proved by order or by contrast, not by how fast this machine is.

Found are assertions on a clock itself. The two seconds within which lookups have to answer during a fault are the
contract's own, and judged in tests/faults.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
JUDGES = sorted(path for path in TESTS.rglob("test_*.py") if "bench" not in path.relative_to(TESTS).parts)
CLOCKS = {"monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "time", "time_ns"}


def tells_time(node: ast.expr) -> bool:
    called = [one.func for one in ast.walk(node) if isinstance(one, ast.Call)]
    return bool(
        CLOCKS & {one.attr if isinstance(one, ast.Attribute) else getattr(one, "id", "") for one in called}
    )


def upper_bounds(source: str) -> Iterator[int]:
    """The lines of assertions that what a clock says is less than something."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assert):
            for compare in (one for one in ast.walk(node.test) if isinstance(one, ast.Compare)):
                for operator, (left, right) in zip(
                    compare.ops, pairwise([compare.left, *compare.comparators]), strict=True
                ):
                    less = isinstance(operator, ast.Lt | ast.LtE) and tells_time(left)
                    more = isinstance(operator, ast.Gt | ast.GtE) and tells_time(right)
                    if less or more:
                        yield node.lineno


def test_nothing_has_to_be_done_within_a_time() -> None:
    found = [f"{path.relative_to(TESTS)}:{line}" for path in JUDGES for line in upper_bounds(path.read_text())]
    assert len(JUDGES) > 100
    assert found == []


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("assert time.monotonic() - started < 2", [1]),
        ("assert 0.5 < perf_counter() - started <= 2", [1]),
        ("assert 2 > loop.time() - started", [1]),
        ("assert time.monotonic() - started > 0.5", []),
        ("assert 0.5 <= time.monotonic() - started", []),
    ],
)
def test_an_upper_bound_is_told_from_a_lower_one(source: str, lines: list[int]) -> None:
    assert list(upper_bounds(source)) == lines
