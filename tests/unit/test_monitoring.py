"""Dashboard and alert rules ask for metrics and labels that exist; promtool reads them where it is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

import app.telemetry

FOLDER = Path(__file__).parents[2] / "docs" / "monitoring"
RULES: list[dict[str, Any]] = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]
PANELS: list[dict[str, Any]] = json.loads((FOLDER / "grafana" / "headroom.json").read_text())["panels"]
EXPRESSIONS = [
    *((f"alert {rule['alert']}", rule["expr"]) for rule in RULES),
    *((f"panel {panel['title']}", target["expr"]) for panel in PANELS for target in panel["targets"]),
]


def labels_by_metric() -> dict[str, set[str]]:
    """Every name under which a metric of Headroom can be asked for, with its labels."""
    named: dict[str, set[str]] = {}
    for metric in vars(app.telemetry).values():
        if hasattr(metric, "_labelnames") and hasattr(metric, "describe"):
            family = metric.describe()[0]
            labels = set(metric._labelnames)
            suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
            named |= {family.name + suffix: labels | {"le"} for suffix in suffixes}
    return named


METRICS = labels_by_metric()


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_every_metric_that_is_asked_for_exists(where: str, expression: str) -> None:
    names = re.findall(r"\bheadroom_\w+", expression)
    assert names or 'up{job="headroom"}' in expression
    for name in names:
        assert name in METRICS, f"{where} asks for {name}"
    known = set().union(*(METRICS[name] for name in names)) | {"job", "instance"}
    used = re.findall(r"(\w+)\s*(?:=~|!=|=)\s*\"", expression)
    used += [name for by in re.findall(r"by \(([^)]*)\)", expression) for name in by.split(", ")]
    assert set(used) <= known, f"{where} uses labels that its metrics do not have"


def test_every_panel_and_rule_is_named_once() -> None:
    names = [where for where, _ in {(where, None) for where, _ in EXPRESSIONS}]
    assert len(names) == len(set(names)) == len(PANELS) + len(RULES)
    assert all(rule["annotations"]["summary"] and rule["labels"]["severity"] for rule in RULES)


def test_metric_names_follow_the_conventions() -> None:
    families = [family for family in REGISTRY.collect() if family.name.startswith("headroom_")]
    assert len(families) > 30
    for family in families:
        assert re.fullmatch(r"headroom_[a-z0-9_]+", family.name)
        assert family.documentation.endswith(".")


def test_promtool_accepts_rules_and_configuration(tmp_path: Path) -> None:
    """Where there is no promtool, the expressions above were still held to the metrics."""
    promtool = shutil.which("promtool")
    alerts = FOLDER / "alerts.yml"
    assert len(RULES) >= 10
    if promtool is not None:
        subprocess.run([promtool, "check", "rules", str(alerts)], check=True, capture_output=True)
        config = (FOLDER / "prometheus.yml").read_text().replace("/etc/prometheus/alerts.yml", str(alerts))
        (tmp_path / "prometheus.yml").write_text(config)
        subprocess.run(
            [promtool, "check", "config", str(tmp_path / "prometheus.yml")], check=True, capture_output=True
        )
