"""Examples for the OpenAPI document: a call of each operation with its answer, and every problem by its code.

`examples.json` has the calls by operation id; a test makes them, in that order, and compares the answers.
"""

from __future__ import annotations

import http
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any, Final

import msgspec

from app.api.problems import STATUS_OF, FieldError, Problem
from app.errors import HeadroomError


class Example(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters by name, body and answer of one call; an answer without a body is None."""

    path: Mapping[str, Any] = {}
    query: Mapping[str, Any] = {}
    body: Any = None
    answer: Any = None


_FAULTS: Final[Mapping[str, FieldError]] = {
    "invalid_query": FieldError("limit", "out_of_range", "Must be from 1 to 10000"),
    "invalid_body": FieldError("resource_metrics.cpu_cores_available", "type", "Input should be a valid integer"),
}


@cache
def examples() -> Mapping[str, Example]:
    text = (resources.files("app.api") / "examples.json").read_bytes()
    return msgspec.json.decode(text, type=dict[str, Example])


def problem_example(code: str, detail: str | None = None) -> dict[str, Any]:
    """What the server answers with this code. `detail`: where an operation has words of its own."""
    status = STATUS_OF[code]
    fault = _FAULTS.get(code)
    problem = Problem(
        title=http.HTTPStatus(status).phrase,
        status=status,
        detail=detail or _details()[code],
        code=code,
        errors=() if fault is None else (fault,),
    )
    shown: dict[str, Any] = msgspec.to_builtins(problem)
    return {"type": problem.type, **shown}


def _details() -> dict[str, str]:
    return {error.code: error.default_detail for error in _subclasses(HeadroomError) if "code" in vars(error)}


def _subclasses(error: type[HeadroomError]) -> Iterator[type[HeadroomError]]:
    yield error
    for subclass in error.__subclasses__():
        yield from _subclasses(subclass)
