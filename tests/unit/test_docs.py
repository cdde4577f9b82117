"""The docs name everything an operator or planner meets, and nothing that is not there."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from urllib.parse import unquote

import prometheus_client
import pytest
import yaml
from pydantic import BaseModel

import app.telemetry
from app.api import schemas
from app.api.operations import Operation
from app.api.problems import STATUS_OF
from app.api.routes import OPERATIONS
from app.cli import app as cli
from app.index.keys import Keys
from app.record.tables import metadata
from app.settings import Settings
from tests.doc_tables import TABLES, with_table
from workers.host_agent.config import ENV_PREFIX, Config

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
SETTINGS = {f"HEADROOM_{name.upper()}" for name in Settings.model_fields}

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|<(?:img|source|a)[^>]+?(?:src|srcset|href)=\"([^\"]+)\"")
_CODE_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def test_the_tables_of_settings_metrics_and_errors_are_up_to_date() -> None:
    for name, table in TABLES.items():
        assert with_table(page(f"{name}.md"), name, table()) == page(f"{name}.md"), "run scripts/docs"


def test_every_setting_is_documented() -> None:
    text = page("settings.md")
    assert not {name for name in SETTINGS if f"| `{name}` |" not in text}
    assert all(field.description for field in Settings.model_fields.values())


def test_no_page_names_a_setting_that_does_not_exist() -> None:
    sources = [*PAGES, ROOT / "docker-compose.yml", ROOT / "Dockerfile"]
    named = {name for path in sources for name in re.findall(r"HEADROOM_[A-Z0-9_]*[A-Z0-9]", path.read_text())}
    assert named <= SETTINGS | {f"{ENV_PREFIX}{name.upper()}" for name in Config.__struct_fields__}


def test_every_metric_is_documented() -> None:
    """Those of other modules too, should one define its own."""
    assert app.telemetry
    families = {family.name: family for family in prometheus_client.REGISTRY.collect()}
    ours = {name: family for name, family in families.items() if name.startswith("headroom_")}
    text = page("metrics.md")
    shown = {f"{name}_total" if family.type == "counter" else name for name, family in ours.items()}
    assert shown
    assert not {name for name in shown if f"| `{name}` |" not in text}
    assert set(re.findall(r"headroom_[a-z_]+[a-z]", text)) <= shown


def test_the_log_lines_to_watch_for_are_written_somewhere() -> None:
    source = "".join(
        path.read_text(encoding="utf-8") for folder in ("app", "workers") for path in (ROOT / folder).rglob("*.py")
    )
    section = page("monitoring.md").partition("## What to look for in the logs\n")[2]
    lines = re.findall(r"^\| `([A-Z][^`]+)` \|", section, re.MULTILINE)
    assert len(lines) >= 5
    assert not {line for line in lines if line not in source}


def test_every_alert_is_documented() -> None:
    rules = yaml.safe_load(page("monitoring/alerts.yml"))["groups"][0]["rules"]
    section = page("monitoring.md").partition("## Alerts, and what to do\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [rule["alert"] for rule in rules]


def test_every_loop_is_documented() -> None:
    names = re.findall(
        r'^    name = "([\w-]+)"$',
        "".join(path.read_text(encoding="utf-8") for path in (ROOT / "workers").glob("*.py")),
        re.MULTILINE,
    )
    row = re.search(r"^\| `loop` \|.*$", page("metrics.md"), re.MULTILINE)
    assert row is not None
    assert not {name for name in names if f"`{name}`" not in row[0]}


def test_every_error_code_is_documented_with_its_status() -> None:
    text = page("errors.md")
    assert not {code for code, status in STATUS_OF.items() if f"| `{code}` | {status} |" not in text}


def test_every_code_of_a_field_is_documented() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "app" / "api").glob("*.py"))
    raised = set(re.findall(r'Field(?:Fault)?Error\((?:[^,()]+, )?"([a-z_]+)"', source)) - {"query", "body"}
    section = page("errors.md").partition("## Codes of single fields")[2].partition("\n## ")[0]
    documented = set(re.findall(r"^\| `([a-z_]+)` \|", section, re.MULTILINE))
    assert {"unknown_parameter", "mismatch"} <= raised
    assert documented == raised | set(schemas._CODES.values())


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.operation_id)
def test_every_call_is_documented_with_its_parameters(operation: Operation) -> None:
    section = page("http.md").partition(f"### `{operation.method} {operation.path}`\n")[2].partition("\n### ")[0]
    assert "```\ncurl " in section
    assert not {parameter.name for parameter in operation.parameters if f"`{parameter.name}`" not in section}
    assert not {header for header in operation.headers if f"`{header}`" not in page("http.md")}


def test_every_command_is_documented() -> None:
    named = ((command.name, command.callback) for command in cli.registered_commands)
    commands = {name or callback.__name__ for name, callback in named if callback}
    assert set(re.findall(r"^### `headroom ([a-z]+)`$", page("cli.md"), re.MULTILINE)) == commands


@pytest.mark.parametrize(
    "model", [schemas.HeartbeatIn, schemas.ResourceMetricsIn, schemas.GpuIn, schemas.RunningClaimIn]
)
def test_every_field_of_a_heartbeat_is_documented(model: type[BaseModel]) -> None:
    assert not {name for name in model.model_fields if f"`{name}`" not in page("http.md")}


def documented_keys() -> list[tuple[str, object]]:
    """Every name that Keys can make, with placeholders for what varies."""
    samples = {
        "agent_id": "<uuid>",
        "agent_type": "<type>",
        "rung_or_band": "8+",
        "pool_name": "<pool>",
        "duty": "<duty>",
    }
    keys = Keys()
    names: list[tuple[str, object]] = []
    for name, member in inspect.getmembers(Keys):
        if name.startswith("_"):
            continue
        if isinstance(member, property):
            names.append((name, getattr(keys, name)))
            continue
        parameters = list(inspect.signature(member).parameters.values())[1:]
        arguments = {parameter.name: samples[parameter.name] for parameter in parameters}
        names.append((name, getattr(keys, name)(**arguments)))
        required = {p.name: samples[p.name] for p in parameters if p.default is inspect.Parameter.empty}
        names.append((f"{name}, required arguments only", getattr(keys, name)(**required)))
    return names


@pytest.mark.parametrize(("name", "key"), documented_keys())
def test_every_key_is_documented(name: str, key: str) -> None:
    assert f"| `{unquote(key)}` |" in page("data-model.md"), name


@pytest.mark.parametrize("table", sorted(metadata.tables))
def test_every_table_and_column_of_the_record_is_documented(table: str) -> None:
    text = page("data-model.md")
    section = text.partition(f"### `{table}`\n")[2].partition("\n#")[0]
    named = {
        name
        for row in re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    }
    assert f"| `{table}` |" in text
    assert named == set(metadata.tables[table].columns.keys())


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = _CODE_BLOCK.sub("", path.read_text(encoding="utf-8"))
    titles = (heading.replace("`", "").lower() for heading in _HEADING.findall(text))
    return {re.sub(r"[^\w\- ]", "", title).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(path: Path) -> None:
    text = _CODE_BLOCK.sub("", path.read_text(encoding="utf-8"))
    links = {first or second for first, second in _LINK.findall(text)}
    for link in links:
        if "://" in link or link.startswith("mailto:"):
            continue
        target, _, anchor = link.partition("#")
        found = (path.parent / target).resolve() if target else path
        assert found.exists(), f"{link} of {path.name}"
        assert found.is_relative_to(ROOT), f"{link} of {path.name}"
        if anchor:
            assert anchor in anchors(found), f"{link} of {path.name}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    to_read = [ROOT / "README.md"]
    while to_read:
        path = to_read.pop()
        if path in reached:
            continue
        reached.add(path)
        for first, second in _LINK.findall(path.read_text(encoding="utf-8")):
            link = (first or second).partition("#")[0]
            if link.endswith(".md") and "://" not in link:
                to_read.append((path.parent / link).resolve())
    assert not set(PAGES) - reached


def test_every_decision_is_listed_and_numbered_once() -> None:
    records = sorted(path.name for path in (ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    listed = re.findall(r"\]\((\d{4}-[a-z0-9-]+\.md)\)", page("decisions/README.md"))
    assert listed == records
    assert [name[:4] for name in records] == [f"{number:04}" for number in range(1, len(records) + 1)]
