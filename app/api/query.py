"""Query parameters: declared once, as what they mean, how they are read, and how OpenAPI shows them.

Stricter than the framework's: an unknown parameter, a repeated one or a number in an unusual spelling is a
fault, since a typo must not silently return everything.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec
from starlette.requests import Request

from app.api.fields import TEXT_PATTERN, FieldFaultError, check_length, check_text
from app.api.problems import FieldError, InvalidParametersError
from app.errors import InvalidAgentIdError
from app.models.identity import parse_agent_id

_NUMBER: Final = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?", re.ASCII)
_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,20}", re.ASCII)
_MAX_PARAMETERS: Final = 64


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """One query parameter; `read` turns its text into a value or raises FieldFaultError."""

    name: str
    description: str
    read: Callable[[str], Any]
    schema: dict[str, Any]


def number(name: str, description: str, *, most: float | None = None, default: float | None = None) -> Parameter:
    """A finite number of at least 0."""
    schema: dict[str, Any] = {"type": "number", "minimum": 0}
    if most is not None:
        schema["maximum"] = most

    def read(text: str) -> float:
        if not _NUMBER.fullmatch(text):
            raise FieldFaultError("type", "Must be a decimal number")
        value = float(text)
        if not math.isfinite(value):
            raise FieldFaultError("not_finite", "Must be finite")
        if value < 0.0:
            raise FieldFaultError("out_of_range", "Must be at least 0")
        if most is not None and value > most:
            raise FieldFaultError("out_of_range", f"Must be at most {most:.0f}")
        return value + 0.0  # -0.0 becomes 0.0

    return _parameter(name, description, read, schema, default)


def whole(name: str, description: str, *, least: int, most: int, default: int | None = None) -> Parameter:
    def read(text: str) -> int:
        if not _WHOLE.fullmatch(text):
            raise FieldFaultError("type", "Must be a whole number")
        value = int(text)
        if not least <= value <= most:
            raise FieldFaultError("out_of_range", f"Must be from {least} to {most}")
        return value

    return _parameter(name, description, read, {"type": "integer", "minimum": least, "maximum": most}, default)


def choice(name: str, description: str, choices: type[StrEnum]) -> Parameter:
    allowed = [str(member) for member in choices]

    def read(text: str) -> StrEnum:
        try:
            return choices(text)
        except ValueError:
            raise FieldFaultError("choice", f"Must be one of {', '.join(allowed)}") from None

    return _parameter(name, description, read, {"type": "string", "enum": allowed}, None)


def text(
    name: str,
    description: str,
    *,
    longest: int,
    pattern: str | None = None,
    default: str | None = None,
) -> Parameter:
    """Text of at least one character."""
    compiled = None if pattern is None else re.compile(pattern, re.ASCII)

    def read(value: str) -> str:
        check_length(value, 1, longest)
        check_text(value)
        if compiled is not None and not compiled.fullmatch(value):
            raise FieldFaultError("pattern", f"Must match {pattern}")
        return value

    shown = TEXT_PATTERN if pattern is None else f"^{pattern}$"
    schema = {"type": "string", "minLength": 1, "maxLength": longest, "pattern": shown}
    return _parameter(name, description, read, schema, default)


def agent(name: str, description: str) -> Parameter:
    def read(value: str) -> str:
        try:
            return parse_agent_id(value)
        except InvalidAgentIdError:
            raise FieldFaultError("type", "Must be a UUID") from None

    return _parameter(name, description, read, {"type": "string", "format": "uuid"}, None)


def _parameter(
    name: str, description: str, read: Callable[[str], Any], schema: dict[str, Any], default: Any
) -> Parameter:
    shown = schema if default is None else {**schema, "default": default}
    return Parameter(name=name, description=description, read=read, schema=shown)


def read_query(request: Request, parameters: Iterable[Parameter]) -> dict[str, Any]:
    """The parameters that were sent, by name.

    Raises:
        InvalidParametersError: with every fault found.
        InvalidCursorError: from the cursor's own reader.
    """
    raw: bytes = request.scope["query_string"]
    if not raw:
        return {}
    known = {parameter.name: parameter for parameter in parameters}
    try:
        pairs = _pairs(raw.decode("ascii"))
    except ValueError:
        raise InvalidParametersError([FieldError("query", "malformed", "The query is not well-formed")]) from None
    values: dict[str, Any] = {}
    faults: list[FieldError] = []
    for name, sent in pairs:
        parameter = known.get(name)
        if parameter is None:
            message = f"Unknown parameter; known are {', '.join(known) or 'none'}"
            faults.append(FieldError("query", "unknown_parameter", message))
        elif name in values:
            faults.append(FieldError(name, "repeated", "Must be sent once"))
        else:
            try:
                values[name] = parameter.read(sent)
            except FieldFaultError as fault:
                values[name] = None
                faults.append(FieldError(name, fault.code, fault.message))
    if faults:
        raise InvalidParametersError(faults)
    return values


def _pairs(query: str) -> list[tuple[str, str]]:
    """Raises ValueError for what is not text, and for too much."""
    if "%" in query or "+" in query or query.count("&") >= _MAX_PARAMETERS:
        return parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=_MAX_PARAMETERS)
    # Nothing is encoded: the same, for a fifth of the time.
    return [(name, value) for name, _, value in (part.partition("=") for part in query.split("&") if part)]
