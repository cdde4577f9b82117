"""The systemd service, and the files that `headroom agent install` writes."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from app.errors import StartupRefusedError
from workers.host_agent import install as module
from workers.host_agent.config import Loaded, load_config
from workers.host_agent.install import install, unit_text


def settings(unit: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in unit.splitlines() if re.match(r"[A-Z]\w+=", line))


def loaded(**flags: object) -> Loaded:
    return load_config(flags, environ={}, files=[])


@pytest.fixture
def as_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """An ordinary user with an empty home; returns the systemctl calls."""
    calls: list[list[str]] = []
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(module, "_run_systemctl", calls.append)
    return calls


def test_the_unit_of_the_machine_is_shut_but_for_hardware_and_network() -> None:
    unit = settings(unit_text(system=True, groups=("render", "video")))
    assert unit["DynamicUser"] == "yes"
    assert unit["SupplementaryGroups"] == "render video"
    assert unit["CapabilityBoundingSet"] == unit["AmbientCapabilities"] == ""
    assert unit["ProtectSystem"] == "strict"
    assert unit["DevicePolicy"] == "closed"
    assert unit["SystemCallFilter"] == "@system-service"
    assert unit["Type"] == "notify"
    assert unit["Restart"] == "always"
    assert "agent" in unit["ExecStart"]
    for name in ("NoNewPrivileges", "PrivateTmp", "ProtectHome", "ProtectKernelModules", "RestrictNamespaces"):
        assert unit[name] == "yes"


def test_an_intel_card_adds_the_one_right_that_its_driver_asks_for() -> None:
    assert settings(unit_text(system=True, perfmon=True))["AmbientCapabilities"] == "CAP_PERFMON"


def test_under_wsl_the_node_of_windows_is_open() -> None:
    opened = "\nDeviceAllow=/dev/dxg rw\n"
    assert opened in unit_text(system=True, wsl=True)
    assert opened not in unit_text(system=True)
    assert "WSL" not in unit_text(system=False, wsl=True)


def test_the_token_is_handed_over_by_systemd() -> None:
    unit = settings(unit_text(system=True, token=Path("/etc/headroom/agent.token")))
    assert unit["LoadCredential"] == "token:/etc/headroom/agent.token"
    assert unit["ExecStart"].endswith(" agent --token-file ${CREDENTIALS_DIRECTORY}/token")


def test_the_unit_of_a_user_asks_for_nothing_that_a_user_may_not_have() -> None:
    unit = settings(unit_text(system=False))
    assert not {
        name for name in unit if name.startswith(("Dynamic", "Device", "Protect", "Ambient", "Supplement"))
    }
    assert unit["NoNewPrivileges"] == "yes"
    assert unit["WantedBy"] == "default.target"


@pytest.mark.parametrize("system", [True, False])
def test_systemd_understands_every_line(tmp_path: Path, *, system: bool) -> None:
    """By its own checker where it is there, else against the names that its manual lists."""
    unit = tmp_path / "headroom-agent.service"
    unit.write_text(unit_text(system=system, groups=("root",), token=Path("/etc/t")))
    analyze = shutil.which("systemd-analyze")
    if analyze is not None:
        done = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True, check=False)
        assert "Unknown" not in done.stderr
        assert "Failed to parse" not in done.stderr
    assert re.findall(r"^\[(\w+)\]$", unit.read_text(), re.MULTILINE) == ["Unit", "Service", "Install"]


def test_what_was_given_is_written_and_the_service_is_announced(
    as_user: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = loaded(server=["http://a", "http://b"], pool_name="lab", token="s3cret", gpu_shared_memory=False)
    assert install(given, print_only=False, enable=False) == 0
    config = tmp_path / ".config/headroom/agent.yml"
    token = tmp_path / ".config/headroom/agent.token"
    unit = tmp_path / ".config/systemd/user/headroom-agent.service"
    assert token.read_text() == "s3cret\n"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert "s3cret" not in config.read_text() + unit.read_text()
    again = load_config({}, environ={}, files=[config]).config
    assert (again.server, again.pool_name) == (("http://a", "http://b"), "lab")
    assert (again.token_file, again.gpu_shared_memory) == (str(token), False)
    assert as_user == [["systemctl", "--user", "daemon-reload"]]
    assert "systemctl --user enable --now headroom-agent.service" in capsys.readouterr().out


def test_enable_starts_it(as_user: list[list[str]]) -> None:
    install(loaded(), print_only=False, enable=True)
    assert as_user[-1] == ["systemctl", "--user", "enable", "--now", "headroom-agent.service"]


def test_print_writes_nothing_and_shows_no_token(
    as_user: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(loaded(token="s3cret"), print_only=True, enable=True)
    shown = capsys.readouterr().out
    assert "[Service]" in shown
    assert "s3cret" not in shown
    assert list(tmp_path.iterdir()) == []
    assert as_user == []


def test_settings_of_somebody_else_are_kept(
    as_user: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / ".config/headroom/agent.yml"
    config.parent.mkdir(parents=True)
    config.write_text("# mine\npool_name: mine\n")
    install(loaded(pool_name="lab"), print_only=False, enable=False)
    assert config.read_text() == "# mine\npool_name: mine\n"
    assert "pool_name: lab" in capsys.readouterr().out


def test_a_service_of_the_machine_cannot_live_in_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(sys, "prefix", "/home/ann/headroom/.venv")
    with pytest.raises(StartupRefusedError, match="/opt"):
        install(loaded(), print_only=False, enable=False)


def test_elsewhere_than_on_linux_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(StartupRefusedError, match=r"docs/agent\.md"):
        install(loaded(), print_only=False, enable=False)


def test_a_place_that_cannot_be_written_is_named(as_user: list[list[str]], tmp_path: Path) -> None:
    (tmp_path / ".config").touch()
    with pytest.raises(StartupRefusedError, match=re.escape(str(tmp_path))):
        install(loaded(), print_only=False, enable=False)


@pytest.mark.parametrize(("path", "written"), [("/opt/a b", "'/opt/a b'"), ("/opt/50%$x", "'/opt/50%%$$x'")])
def test_paths_mean_what_they_say(path: str, written: str) -> None:
    assert module._quoted(path) == written
