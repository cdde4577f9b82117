"""The OpenAPI document: the framework's, with the components that the route table refers to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from pydantic.json_schema import models_json_schema

from app.api.operations import REF, Operation
from app.api.problems import Problem
from app.api.schemas import BatchedHeartbeatIn


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
