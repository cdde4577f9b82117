"""The command line: what it teaches, and how flags become settings."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from app import __version__, cli
from app.settings import Settings
from workers.up import as_environment

COMMANDS = ("up", "api", "worker", "simulate", "migrate")
NOT_SETTINGS = {"simulate", "agent", "help"}


def headroom(
    *arguments: str, cwd: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs the command as a person would, in a directory without a `.env`."""
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parent.parent), **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    shown = CliRunner().invoke(cli.app, [command, "--help"])
    assert shown.exit_code == 0
    assert "Usage" in shown.output


def test_help_names_every_command_and_teaches_by_example() -> None:
    shown = CliRunner().invoke(cli.app, ["--help"]).output
    assert all(command in shown for command in (*COMMANDS, "agent"))
    assert "headroom up --simulate 200" in shown


def test_help_loads_nothing_that_is_slow() -> None:
    script = (
        "import sys, app.cli\n"
        "slow = {'pydantic', 'fastapi', 'sqlalchemy', 'redis', 'httpx', 'uvicorn', 'structlog', 'rich.console'}\n"
        "print(sorted(slow & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["up", "api", "worker", "migrate"])
def test_flags_say_the_same_as_the_settings(command: str) -> None:
    group = typer.main.get_command(cli.app)
    parameters = group.commands[command].params  # type: ignore[attr-defined]  # typer's own group type is private
    flags = {parameter.name for parameter in parameters} - NOT_SETTINGS - {"name"}
    assert flags <= Settings.model_fields.keys()


@pytest.mark.parametrize("command", [("agent", "--check"), ("up", "--help")])
def test_nobody_need_read_to_the_end(command: tuple[str, str], tmp_path: Path) -> None:
    """As in `headroom agent --check | head`."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nowhere:
        done = subprocess.run(
            [sys.executable, "-m", "app", *command],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parent.parent)},
            stdout=nowhere,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "")


def test_any_setting_is_a_flag(tmp_path: Path) -> None:
    done = headroom("api", "--offline-after-s", "10", "--heartbeat-interval-s=30", cwd=tmp_path)
    assert done.returncode == os.EX_CONFIG
    assert "HEADROOM_OFFLINE_AFTER_S must be at least twice HEADROOM_HEARTBEAT_INTERVAL_S" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--no-such-thing", "1"], "--no-such-thing"),
        (["stray"], "stray"),
        (["--port", "eighty"], "--port"),
    ],
)
def test_wrong_usage_is_answered_with_2(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = headroom("up", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_setting_that_is_not_allowed_is_named(tmp_path: Path) -> None:
    done = headroom("up", cwd=tmp_path, environment={"HEADROOM_PORT": "99999"})
    assert done.returncode == os.EX_CONFIG
    assert "HEADROOM_PORT: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["api"], ["worker", "ingest"]])
def test_a_single_part_needs_a_server_named(tmp_path: Path, arguments: list[str]) -> None:
    done = headroom(*arguments, cwd=tmp_path)
    assert done.returncode == os.EX_CONFIG
    assert "HEADROOM_REDIS_URL is not set" in done.stderr


def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As compose files and unit files write it."""
    monkeypatch.setenv("HEADROOM_REDIS_URL", "")
    monkeypatch.setenv("HEADROOM_PORT", "")
    assert Settings() == Settings(redis_url=None, port=8000)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("headroom fi", ["find", "fit"]),
        ("headroom find --v", ["--vram"]),
        ("headroom find --gpu ", ["nvidia", "amd", "intel", "none"]),
        ("headroom worker re", ["recorder", "reaper"]),
        ("headroom simulate 5 --profile mi", ["mixed"]),
    ],
)
def test_the_shell_completes_what_is_typed(tmp_path: Path, typed: str, offered: list[str]) -> None:
    words = typed.split(" ")
    asked = {
        "_HEADROOM_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(words) - 1),
    }
    done = headroom(cwd=tmp_path, environment=asked)
    assert done.stdout.split() == offered
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_can_be_set_up_by_hand(tmp_path: Path, shell: str) -> None:
    done = headroom("--show-completion", shell, cwd=tmp_path)
    assert "_HEADROOM_COMPLETE" in done.stdout


def test_bash_takes_the_completion(tmp_path: Path) -> None:
    """The script as it is installed, in a shell that has only that."""
    script = headroom("--show-completion", "bash", cwd=tmp_path).stdout
    program = tmp_path / "headroom"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m app "$@"\n')
    program.chmod(0o755)
    press_tab = (
        f"{script}\nCOMP_WORDS=(headroom wo) COMP_CWORD=1\n_headroom_completion {program}\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", press_tab],
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == ["worker"]


@pytest.mark.parametrize(
    ("url", "status", "said"),
    [
        ("http://me:s3cret@127.0.0.1:9", 1, "http://127.0.0.1:9"),
        ("redis://me:s3cret@127.0.0.1:9", 1, "redis://127.0.0.1:9"),
        ("me:s3cret", 2, "--url"),
        ("http://", 2, "--url"),
    ],
)
def test_an_address_where_nobody_is_is_named_without_its_password(
    tmp_path: Path, url: str, status: int, said: str
) -> None:
    done = headroom("find", "--url", url, cwd=tmp_path)
    assert done.returncode == status
    assert said in done.stderr
    assert "s3cret" not in done.stderr
    assert "Traceback" not in done.stderr


def test_the_version_is_told() -> None:
    shown = CliRunner().invoke(cli.app, ["--version"])
    assert (shown.exit_code, shown.output) == (0, f"{__version__}\n")


def test_settings_reach_another_process_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(data_dir=tmp_path, port=0, redis_url="unix:///tmp/x.sock", offline_after_s=61.5)
    for name, value in as_environment(settings).items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings
