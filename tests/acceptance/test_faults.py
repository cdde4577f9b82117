"""`scripts/faults` as a person runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.processes import ROOT


def test_a_row_is_run_shown_and_written_down(tmp_path: Path) -> None:
    seen = tmp_path / "seen.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "13", "--json", str(seen)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "1 row, 1 held"
    [row] = json.loads(seen.read_text())["rows"]
    [test] = row["tests"]
    assert (row["row"], row["held"]) == (13, True)
    assert test["lookups"] > 0
    assert test["slowest_ms"] >= test["p99_ms"] > 0
