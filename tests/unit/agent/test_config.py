"""Settings: files, environment and flags, in rising order."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from app.errors import StartupRefusedError
from workers.host_agent.config import Config, Loaded, config_files, default_state_dir, load_config


def load(
    flags: dict[str, object] | None = None, environ: dict[str, str] | None = None, files: list[Path] | None = None
) -> Loaded:
    return load_config(flags or {}, environ=environ or {}, files=files or [])


def test_each_layer_wins_over_the_one_before(tmp_path: Path) -> None:
    system, own = tmp_path / "system.yml", tmp_path / "own.yml"
    system.write_text("pool_name: system\nagent_type: infra\ninterval_s: 10\nhostname: from-system\n")
    own.write_text("pool_name: own\nagent_type: server\ninterval_s: 20\n")
    loaded = load(
        {"pool_name": "flag"},
        {"HEADROOM_AGENT_POOL_NAME": "environment", "HEADROOM_AGENT_AGENT_TYPE": "laptop", "PATH": "/bin"},
        [system, own, tmp_path / "missing.yml"],
    )
    config = loaded.config
    assert (config.pool_name, config.agent_type, config.interval_s) == ("flag", "laptop", 20.0)
    assert config.hostname == "from-system"
    assert loaded.sources == {
        "pool_name": "flag",
        "agent_type": "environment",
        "interval_s": str(own),
        "hostname": str(system),
    }


def test_the_places_are_looked_at_in_rising_order() -> None:
    assert [str(path) for path in config_files()] == [
        "/etc/headroom/agent.yml",
        str(Path.home() / ".config/headroom/agent.yml"),
    ]


def test_everything_can_be_set_by_environment(tmp_path: Path) -> None:
    values = {
        "server": "http://a:1, https://b/prefix",
        "gpu": "",
        "gpu_shared_memory": "false",
        "timeout_s": "2.5",
        "state_dir": str(tmp_path),
        "agent_id": "0D9C2F6E-8F0A-4E1B-9B52-0A6A2C1D3E4F",
        "token": "secret",
    }
    config = load(environ={f"HEADROOM_AGENT_{name.upper()}": value for name, value in values.items()}).config
    assert config.server == ("http://a:1", "https://b/prefix")
    assert config.gpu == ()
    assert config.gpu_shared_memory is False
    assert config.timeout_s == 2.5
    assert config.state_dir == tmp_path
    assert config.token == "secret"


def test_a_list_in_a_file_may_be_a_list(tmp_path: Path) -> None:
    file = tmp_path / "agent.yml"
    file.write_text("server: [http://a, http://b]\ngpu: nvidia\ngpu_shared_memory: no\n")
    config = load(files=[file]).config
    assert config.server == ("http://a", "http://b")
    assert config.gpu == ("nvidia",)
    assert config.gpu_shared_memory is False


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("server", "ftp://a"),
        ("server", ""),
        ("interval_s", "0"),
        ("interval_s", "soon"),
        ("timeout_s", "61"),
        ("agent_type", "Desktop"),
        ("agent_id", "me"),
        ("pool_name", ""),
        ("pool_name", "p" * 129),
        ("gpu", "matrox"),
        ("log_level", "LOUD"),
        ("gateway_listen", "somewhere"),
        ("state_dir", ""),
        ("timeout_s", "nan"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_place(name: str, value: str) -> None:
    variable = f"HEADROOM_AGENT_{name.upper()}"
    with pytest.raises(StartupRefusedError, match=variable):
        load(environ={variable: value})
    with pytest.raises(StartupRefusedError, match=f"flag: {name}"):
        load(flags={name: value})


def test_a_refusal_does_not_show_the_value(tmp_path: Path) -> None:
    file = tmp_path / "agent.yml"
    file.write_text("token: [hush-hush]\n")
    with pytest.raises(StartupRefusedError) as refusal:
        load(files=[file])
    assert "hush" not in refusal.value.detail
    assert str(file) in refusal.value.detail


def test_an_unknown_setting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupRefusedError, match="HEADROOM_AGENT_POOLNAME"):
        load(environ={"HEADROOM_AGENT_POOLNAME": "x"})
    file = tmp_path / "agent.yml"
    file.write_text("poolname: x\n")
    with pytest.raises(StartupRefusedError, match=re.escape(f"{file}: poolname")):
        load(files=[file])


@pytest.mark.parametrize("content", ["- a\n", "just text", "a: [", "1: x\n", "\x00", "pool_name: \xff"])
def test_a_file_that_is_no_settings_file_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "agent.yml"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(StartupRefusedError, match=re.escape(str(file))):
        load(files=[file])


def test_an_empty_file_is_fine(tmp_path: Path) -> None:
    file = tmp_path / "agent.yml"
    file.write_text("# nothing yet\n")
    assert load(files=[file]).config == Config()


def test_a_token_comes_from_one_place() -> None:
    with pytest.raises(StartupRefusedError, match="not both"):
        load({"token": "a", "token_file": "/b"})


def test_the_state_directory_depends_on_who_runs_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/given:/var/lib/second")
    assert default_state_dir() == Path("/var/lib/given")
    monkeypatch.delenv("STATE_DIRECTORY")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_state_dir() == Path("/var/lib/headroom-agent")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_state_dir() == tmp_path / "headroom-agent"


def test_a_user_without_a_home_can_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    for name in ("XDG_STATE_HOME", "STATE_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    assert config_files() == (Path("/etc/headroom/agent.yml"),)
    assert default_state_dir() == Path("/var/lib/headroom-agent")


def test_paths_that_are_not_given_are_in_the_state_directory(tmp_path: Path) -> None:
    config = load({"state_dir": str(tmp_path)}).config
    assert (config.busy_path, config.claims_path) == (tmp_path / "busy", tmp_path / "claims.d")
    config = load({"busy_file": "/b", "claims_dir": "/c"}).config
    assert (config.busy_path, config.claims_path) == (Path("/b"), Path("/c"))


@pytest.mark.parametrize("name", ["token", "gateway_token"])
def test_a_token_that_no_header_can_carry_is_refused_unseen(name: str) -> None:
    for token in ("hush-hush\n", "hush\nhush", "hush\u20ac"):
        with pytest.raises(StartupRefusedError, match=name) as refusal:
            load({name: token})
        assert "hush" not in refusal.value.detail


@pytest.mark.parametrize("server", ["http://a:99999", "http://a:b", "http://[::1", "http://:80", "http://a:0"])
def test_an_address_that_is_none_is_refused(server: str) -> None:
    with pytest.raises(StartupRefusedError, match="flag: server"):
        load({"server": ["http://fine:8000", server]})
