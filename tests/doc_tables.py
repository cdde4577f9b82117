"""Writes the tables of docs/settings.md, metrics.md, errors.md and agent.md from the code they describe.

With --check it changes nothing and ends with 1 when a table is out of date.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
from prometheus_client.metrics import MetricWrapperBase

import app.api
from app import telemetry
from app.api.problems import STATUS_OF
from app.errors import HeadroomError
from app.settings import Settings
from workers.host_agent.config import ENV_PREFIX, Config

ROOT = Path(__file__).resolve().parent.parent


_BEGIN = "<!-- {}: written by scripts/docs -->\n"
_END = "<!-- end -->\n"


def settings_table() -> Iterator[str]:
    yield from _head("setting", "default", "allowed", "meaning")
    for name, field in Settings.model_fields.items():
        if name == "data_dir":
            default = "`~/.local/share/headroom`"
        elif field.default is None:
            default = "unset"
        else:
            default = f"`{field.default}`"
        yield _row(f"`HEADROOM_{name.upper()}`", default, _allowed(field), field.description or "")


def _allowed(field: Any) -> str:
    choices = get_args(field.annotation)
    if choices and all(isinstance(choice, str) for choice in choices):
        return ", ".join(f"`{choice}`" for choice in choices)
    words = {"gt": "above", "ge": "from", "le": "to", "lt": "below"}
    limits = [
        f"{word} {getattr(limit, attribute):,}"
        for attribute, word in words.items()
        for limit in field.metadata
        if hasattr(limit, attribute)
    ]
    return " ".join(limits)


def metrics_table() -> Iterator[str]:
    yield from _head("metric", "type", "labels", "meaning")
    metrics = [value for value in vars(telemetry).values() if isinstance(value, MetricWrapperBase)]
    for metric in metrics:
        for family in metric.describe():
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = ", ".join(f"`{label}`" for label in metric._labelnames)
            yield _row(f"`{name}`", family.type, labels, family.documentation)


def errors_table() -> Iterator[str]:
    for module in pkgutil.iter_modules(app.api.__path__, "app.api."):
        importlib.import_module(module.name)
    details = {error.code: error.default_detail for error in reversed(list(_descendants(HeadroomError)))}
    yield from _head("code", "status", "meaning")
    for code, status in sorted(STATUS_OF.items(), key=lambda item: (item[1], item[0])):
        yield _row(f"`{code}`", str(status), details[code])


def agent_table() -> Iterator[str]:
    yield from _head("setting", "environment", "default", "meaning")
    hints = get_type_hints(Config, include_extras=True)
    for field in msgspec.structs.fields(Config):
        (description,) = [
            meta.description for meta in hints[field.name].__metadata__ if isinstance(meta, msgspec.Meta)
        ]
        default = field.default
        if default is msgspec.NODEFAULT:
            shown = ""
        elif isinstance(default, tuple):
            shown = f"`{','.join(default)}`"
        else:
            shown = f"`{str(default).lower() if isinstance(default, bool) else default}`" if default != "" else ""
        yield _row(f"`{field.name}`", f"`{ENV_PREFIX}{field.name.upper()}`", shown, description or "")


def _descendants(base: type[HeadroomError]) -> Iterator[type[HeadroomError]]:
    yield base
    for child in base.__subclasses__():
        yield from _descendants(child)


def _head(*titles: str) -> Iterator[str]:
    yield _row(*titles)
    yield _row(*("---" for _ in titles))


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


TABLES = {
    "settings": settings_table,
    "metrics": metrics_table,
    "errors": errors_table,
    "agent": agent_table,
}


def with_table(text: str, name: str, rows: Iterable[str]) -> str:
    begin = _BEGIN.format(name)
    before, _, rest = text.partition(begin)
    _, end, after = rest.partition(_END)
    if not end:
        raise SystemExit(f"docs/{name}.md has no place for its table: {begin.strip()} … {_END.strip()}")
    return before + begin + "\n" + "".join(rows) + "\n" + end + after


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say what is out of date")
    check = parser.parse_args().check
    stale = 0
    for name, table in TABLES.items():
        path = ROOT / "docs" / f"{name}.md"
        text = path.read_text(encoding="utf-8")
        fresh = with_table(text, name, table())
        if fresh == text:
            continue
        if check:
            sys.stdout.write(f"docs/{name}.md is out of date: run scripts/docs\n")
            stale = 1
        else:
            path.write_text(fresh, encoding="utf-8")
            sys.stdout.write(f"wrote docs/{name}.md\n")
    return stale


if __name__ == "__main__":
    raise SystemExit(main())
