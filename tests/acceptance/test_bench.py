"""The short form of the benchmark: every side gives right answers, whatever it takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.bench.fleets import FLEETS
from tests.bench.questions import INSIGHTS, QUESTIONS
from tests.bench.results import Results
from tests.processes import ROOT


@pytest.mark.timeout(400)
def test_every_side_answers_rightly(tmp_path: Path) -> None:
    written = tmp_path / "bench.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--quick", "--json", written],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=380,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all right" in done.stdout
    results = msgspec.json.decode(written.read_bytes(), type=Results)
    assert not results.whole
    assert results.checked > 1_000
    measured = {(line.fleet, line.phase, line.side, line.question) for line in results.lines}
    for fleet in FLEETS:
        for side in ("PING", "index", "index through HTTP", "Postgres btree", "client-side intersection"):
            assert all((fleet, "at rest", side, question.name) in measured for question in QUESTIONS)
        for side in ("index", "index through HTTP"):
            for question in INSIGHTS:
                there = question.kind != "summary" or fleet != "pools"
                assert ((fleet, "at rest", side, question.name) in measured) is there
    assert results.waiting is not None
    assert results.waiting.others > 100
    assert ("unlucky", "under load", "index", "top 10") in measured
    found = results.ingestion
    assert found is not None
    assert found.refill is not None
    assert found.held is not None
    assert [memory.pools for memory in found.memory] == [1, 20]
