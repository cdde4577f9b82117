"""The OpenAPI document by itself: what a generator of clients, and a person who reads it, need of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from app.api.examples import examples
from app.api.openapi import EXAMPLE
from app.api.problems import PROBLEM_TYPE, STATUS_OF
from app.main import create_app
from app.settings import Settings

ERRORS = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()
DOCUMENT: dict[str, Any] = create_app(Settings()).openapi()
OPERATIONS: dict[str, dict[str, Any]] = {
    operation["operationId"]: operation | {"path": path}
    for path, methods in DOCUMENT["paths"].items()
    for operation in methods.values()
}
# Codes that no operation in particular can answer with: there was none yet, or no HTTP at all.
BEFORE_ANY = {"not_found", "method_not_allowed", "bad_request", "invalid_path", "unauthorized", "unavailable"}
WITHOUT_HTTP = {"startup_refused", "undecodable_entry", "unexpected_answer"}


@cache
def schema_of(reference: str) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator({"$ref": reference, "components": DOCUMENT["components"]})


def validate(schema: dict[str, Any], value: Any) -> None:
    jsonschema_rs.Draft202012Validator({**schema, "components": DOCUMENT["components"]}).validate(value)


def contents(operation: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for status, response in operation["responses"].items():
        for content in response.get("content", {}).values():
            yield status, content
    for content in operation.get("requestBody", {}).get("content", {}).values():
        yield "body", content


def test_every_operation_has_a_name_that_a_language_takes() -> None:
    paths = sum(len(methods) for methods in DOCUMENT["paths"].values())
    assert len(OPERATIONS) == paths, "no name twice"
    for operation_id, operation in OPERATIONS.items():
        assert re.fullmatch(r"[a-z][a-zA-Z]+", operation_id)
        assert operation["summary"]
        assert len(operation["tags"]) == 1
        assert re.findall(r"\{(\w+)\}", operation["path"]) == [
            one["name"] for one in operation["parameters"] if one["in"] == "path"
        ]


def test_every_schema_is_one_and_every_reference_leads_somewhere() -> None:
    for name, schema in DOCUMENT["components"]["schemas"].items():
        assert jsonschema_rs.meta.is_valid(schema), name
    text = str(DOCUMENT)
    for kind, name in re.findall(r"#/components/(\w+)/([\w.-]+)", text):
        assert name in DOCUMENT["components"][kind]


@pytest.mark.parametrize("operation_id", OPERATIONS)
def test_every_call_has_an_example_that_its_own_schemas_take(operation_id: str) -> None:
    operation = OPERATIONS[operation_id]
    shown = [one for one in operation["parameters"] if "example" in one]
    for parameter in operation["parameters"]:
        assert "example" in parameter or not parameter["required"]
    for parameter in shown:
        validate(parameter["schema"], parameter["example"])
    if "requestBody" in operation:
        content = operation["requestBody"]["content"]["application/json"]
        validate(content["schema"], content["examples"][EXAMPLE]["value"])
    for status, content in contents(operation):
        if status.startswith("2"):
            validate(content["schema"], content["examples"][EXAMPLE]["value"])


def test_no_example_is_about_an_operation_that_is_not_there() -> None:
    assert examples().keys() == OPERATIONS.keys()


@pytest.mark.parametrize("operation_id", OPERATIONS)
def test_every_error_is_named_with_its_status_and_its_example(operation_id: str) -> None:
    responses = OPERATIONS[operation_id]["responses"]
    faults = {status: one for status, one in responses.items() if PROBLEM_TYPE in one.get("content", {})}
    assert {"400", "500"} <= faults.keys()
    for status, fault in faults.items():
        content = fault["content"][PROBLEM_TYPE]
        assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
        for code, example in content["examples"].items():
            assert f"`{code}`" in fault["description"]
            assert f"`{code}`" in ERRORS
            value = example["value"]
            schema_of("#/components/schemas/Problem").validate(value)
            assert (value["code"], str(value["status"])) == (code, status)
            assert value["detail"]


def test_every_code_that_http_answers_with_is_some_operations() -> None:
    named = {
        code
        for operation in OPERATIONS.values()
        for _, content in contents(operation)
        for code in content.get("examples", {}).keys() - {EXAMPLE}
    }
    assert named | BEFORE_ANY | WITHOUT_HTTP == STATUS_OF.keys()
