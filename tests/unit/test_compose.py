"""The compose file starts only what exists: commands, settings, files."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from app.cli import app
from app.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
TEXT = COMPOSE.read_text(encoding="utf-8")
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(TEXT)["services"]
OURS = sorted(name for name, service in SERVICES.items() if "build" in service)
SETTINGS = {f"HEADROOM_{name.upper()}" for name in Settings.model_fields}


def parse(command: Any, arguments: list[str]) -> str:
    """Reads arguments as the command line does, without running anything; returns the name of the command.

    Raises the command line's own usage error for what it would refuse.
    """
    context = command.make_context("headroom", list(arguments))
    if not hasattr(command, "resolve_command"):
        return str(command.name)
    name, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
    return parse(found, rest) and str(name)


def test_every_part_has_its_service() -> None:
    assert OURS == ["api", "ingest", "migrate", "reaper", "recorder"]
    assert {"redis", "postgres"} <= SERVICES.keys()


@pytest.mark.parametrize("service", OURS)
def test_the_command_of_a_service_exists(service: str) -> None:
    command = SERVICES[service]["command"]
    assert parse(typer.main.get_command(app), command) == command[0]


@pytest.mark.parametrize("command", [["worker", "nonsense"], ["nonsense"], ["worker"]])
def test_a_command_that_does_not_exist_would_be_noticed(command: list[str]) -> None:
    with pytest.raises(Exception, match=r"(?i)nonsense|missing"):
        parse(typer.main.get_command(app), command)


@pytest.mark.parametrize("service", OURS)
def test_the_environment_of_a_service_is_made_of_settings(service: str) -> None:
    environment: dict[str, str] = SERVICES[service]["environment"]
    assert environment.keys() <= SETTINGS
    assert {"HEADROOM_REDIS_URL", "HEADROOM_DATABASE_URL"} <= environment.keys()


def test_the_settings_of_the_services_are_valid() -> None:
    for service in OURS:
        environment = {
            name.removeprefix("HEADROOM_").lower(): re.sub(r"\$\{\w+:-(.*?)\}", r"\1", value)
            for name, value in SERVICES[service]["environment"].items()
        }
        settings = Settings.model_validate(environment)
        assert settings.record_url.startswith("postgresql+asyncpg://")


def test_every_variable_has_a_default() -> None:
    """`docker compose up` in a fresh clone needs no `.env`."""
    assert not re.findall(r"(?<!\$)\$(?:\w|\{\w+\})", TEXT)


def test_image_tags_are_pinned() -> None:
    from_compose = [service["image"] for service in SERVICES.values()]
    from_dockerfile = re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    for image in [*from_compose, *from_dockerfile]:
        assert re.search(r":v?\d+\.\d+(\.\d+)?(-[a-z]+)*$", image), image


def test_redis_keeps_its_data_and_never_evicts() -> None:
    command = SERVICES["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"


def test_only_what_people_look_at_is_published_and_only_to_this_machine() -> None:
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert list(ports) == ["api", "prometheus", "grafana"]
    assert all(port.startswith("127.0.0.1:") for published in ports.values() for port in published)


def test_stores_and_api_have_health_checks_and_volumes_exist() -> None:
    assert all("healthcheck" in SERVICES[name] for name in ("redis", "postgres", *OURS) if name != "migrate")
    volumes = yaml.safe_load(TEXT)["volumes"]
    used = {volume.partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    files = {name for name in used if name.startswith("./")}
    assert used - files == set(volumes)
    assert all((ROOT / name).is_file() for name in files)


def test_prometheus_scrapes_every_process_where_it_serves_its_metrics() -> None:
    config = yaml.safe_load((ROOT / "docs/monitoring/prometheus.yml").read_text())
    (targets,) = [one["targets"] for one in config["scrape_configs"][0]["static_configs"]]
    environments = {name: SERVICES[name]["environment"] for name in OURS if name != "migrate"}
    ports = {
        name: environment.get("HEADROOM_METRICS_PORT", environment.get("HEADROOM_PORT"))
        for name, environment in environments.items()
    }
    assert sorted(targets) == sorted(f"{name}:{port}" for name, port in ports.items())


def test_the_health_check_asks_for_a_path_that_exists() -> None:
    from app.api.routes import OPERATIONS

    check = " ".join(SERVICES["api"]["healthcheck"]["test"])
    (path,) = re.findall(r"http://127\.0\.0\.1:8000(/\w+)", check)
    assert path in {operation.path for operation in OPERATIONS}


def test_the_grace_period_is_longer_than_a_process_may_drain() -> None:
    shutdown_after_s = Settings.model_fields["shutdown_after_s"].default
    for service in OURS:
        assert float(SERVICES[service]["stop_grace_period"].removesuffix("s")) > shutdown_after_s


def test_the_image_copies_what_exists_and_runs_as_nobody_special() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = [
        name for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE) for name in line.split()
    ]
    assert copied
    assert all((ROOT / name).exists() for name in copied)
    sent = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    assert set(copied) == sent
    assert re.findall(r"^USER (\S+)$", text, re.MULTILINE)[-1] not in {"root", "0"}
    assert parse(typer.main.get_command(app), re.findall(r'^CMD \["(\w+)"\]$', text, re.MULTILINE)) == "api"


def test_compose_itself_accepts_the_file() -> None:
    """Where the plugin is; YAML and its anchors are read above in any case."""
    docker = shutil.which("docker")
    if docker and subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode == 0:
        checked = subprocess.run(
            [docker, "compose", "--file", COMPOSE, "config", "--quiet"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert checked.returncode == 0, checked.stderr
    assert all(isinstance(service, dict) for service in SERVICES.values())
