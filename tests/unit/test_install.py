"""The lock files and the scripts that install them."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.waiting import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("scripts/install", "scripts/run", "scripts/lint", "scripts/test", "scripts/lock", ".ci/run")
LOCKS = ("requirements.lock", "requirements-dev.lock")
COMPILER_LOCK = "requirements-compiler.lock"


def pinned(lock: str) -> dict[str, str]:
    lines = (ROOT / lock).read_text().splitlines()
    found = [match for line in lines if (match := re.match(r"([a-z0-9.-]+)==([^ ;]+)", line))]
    return {match[1]: match[2] for match in found}


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[>=<; ]", requirement)[0].lower() for requirement in requirements}


@pytest.mark.parametrize("lock", [*LOCKS, COMPILER_LOCK])
def test_every_pinned_package_has_hashes_and_no_address(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert not re.search(
        r"https?:|file:|--(extra-)?index|--find-links|@ |^-e|/(home|root|tmp|opt)/", text, re.MULTILINE
    )
    blocks = re.findall(r"^[a-z0-9.-]+==.*(?:\n    --hash=sha256:[0-9a-f]{64}.*)+", text, re.MULTILINE)
    assert len(blocks) == len(pinned(lock))


def test_the_locks_hold_what_pyproject_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    runtime = names(project["project"]["dependencies"])
    groups = project["dependency-groups"]
    developing = names([one for one in groups["dev"] if isinstance(one, str)])
    assert runtime | names(groups["build"]) <= pinned(LOCKS[0]).keys()
    assert developing <= pinned(LOCKS[1]).keys()
    assert names(groups["compiler"]) == pinned(COMPILER_LOCK).keys()


def test_developing_uses_the_same_versions_as_running() -> None:
    runtime, developing = (pinned(lock) for lock in LOCKS)
    assert runtime.items() <= developing.items()


def test_an_old_python_is_said_and_what_to_do(tmp_path: Path) -> None:
    copy = tmp_path / "checkout"
    (copy / "scripts").mkdir(parents=True)
    for name in ("scripts/install", "requirements.lock", "pyproject.toml"):
        (copy / name).write_bytes((ROOT / name).read_bytes())
    old = tmp_path / "bin"
    old.mkdir()
    for name in ("python3", *(f"python3.{minor}" for minor in range(11, 15))):
        (old / name).write_text('#!/bin/sh\n[ "$1" = -V ] && echo "Python 3.9.2" && exit 0\nexit 1\n')
        (old / name).chmod(0o755)
    done = subprocess.run(
        ["bash", "scripts/install"],
        cwd=copy,
        env={"PATH": f"{old}:{os.defpath}", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed, and python3 here is Python 3.9.2" in done.stderr
    assert "PYTHON=" in done.stderr
    assert not (copy / ".venv").exists()


@pytest.mark.parametrize("script", [*SCRIPTS, "scripts/faults"])
def test_scripts_are_sound_and_can_be_executed(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["bash", "-n", ROOT / script], check=True, timeout=PATIENCE_S)
