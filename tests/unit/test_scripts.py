"""What all scripts of the index keep to, whatever they do."""

from __future__ import annotations

import re
from importlib import resources

import pytest

SCRIPTS = {
    file.name.removesuffix(".lua"): file.read_text("utf-8")
    for file in (resources.files("app.index") / "scripts").iterdir()
    if file.name.endswith(".lua")
}
MOVES = re.compile(r"\b(recount|change_state|follow)\(")
WRITES = re.compile(r"^(?:write_totals\(\)|local \w+, \w+ = pcall\(write_totals\))$", re.MULTILINE)
MOVING = [
    name
    for name, source in SCRIPTS.items()
    if re.search(r"^--!include .*\btotals\b", source, re.MULTILINE) and MOVES.search(source)
]


@pytest.mark.parametrize("name", MOVING)
def test_a_script_that_moves_agents_writes_the_totals_last(name: str) -> None:
    """What is added up and not written would be missing from the totals for ever."""
    body = SCRIPTS[name]
    moves = [found.end() for found in MOVES.finditer(body)]
    written = [found.start() for found in WRITES.finditer(body)]
    assert len(written) == 1
    assert max(moves) < written[0]
