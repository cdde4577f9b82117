"""The OpenAPI document: the framework's, with the components that the route table refers to."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, Final

import msgspec
from pydantic.json_schema import models_json_schema

from app.api.body import JSON
from app.api.examples import examples
from app.api.operations import REF, Operation
from app.api.problems import Problem
from app.api.schemas import BatchedHeartbeatIn

EXAMPLE: Final = "example"
"""The only one of a body or an answer. RapiDoc breaks on the nulls in it where it stands alone, without a name."""


def components(operations: Iterable[Operation]) -> dict[str, Any]:
    """Schemas of every body and answer, by name."""
    operations = tuple(operations)
    answers = [kind for operation in operations for kind in operation.answers.values()]
    kinds = [kind for kind in answers if kind not in {None, str, bytes}]
    _, outgoing = msgspec.json.schema_components([Problem, *kinds], ref_template=REF)
    models = {operation.body for operation in operations if operation.body is not None} | {BatchedHeartbeatIn}
    _, incoming = models_json_schema(
        [(model, "validation") for model in sorted(models, key=lambda model: model.__name__)],
        ref_template=REF.replace("{name}", "{model}"),
    )
    return {**incoming["$defs"], **outgoing}


def add_examples(document: dict[str, Any], operations: Iterable[Operation]) -> None:
    """Adds a call and its answer to each operation; the framework would leave the nulls out of them."""
    for operation in operations:
        example = examples()[operation.operation_id]
        described = document["paths"][operation.path][operation.method.lower()]
        for parameter in described["parameters"]:
            given = example.path if parameter["in"] == "path" else example.query
            if parameter["name"] in given:
                parameter["example"] = given[parameter["name"]]
        if operation.body is not None:
            described["requestBody"]["content"][JSON]["examples"] = {EXAMPLE: {"value": example.body}}
        for status in operation.answers:
            for content in described["responses"][str(status)].get("content", {}).values():
                if status < HTTPStatus.BAD_REQUEST:
                    content["examples"] = {EXAMPLE: {"value": example.answer}}
