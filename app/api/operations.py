"""An HTTP operation as the route table declares it, and its description for OpenAPI.

Handlers take the request and return a finished response: the framework neither validates nor serialises for
them, which would cost more than the lookup itself. So that the description cannot drift from the code, it is
made from the same objects that the handlers use: parameter tables, models of bodies, types of answers.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from app.api.body import JSON, MSGPACK
from app.api.examples import problem_example
from app.api.problems import PROBLEM_TYPE, STATUS_OF
from app.api.query import Parameter

REF: Final = "#/components/schemas/{name}"

_BODY_FAULTS: Final = (
    "empty_body",
    "malformed_body",
    "body_too_large",
    "unsupported_media_type",
    "unsupported_content_encoding",
    "invalid_body",
)
_HEADERS: Final = {
    "Link": "The next page, `rel=next`, where not all is returned.",
    "X-Total-Count": "How many match; may include agents silent for a moment. Left out where it is not exact.",
    "X-Capacity-Source": "`record` while the index is away.",
    "X-Capacity-As-Of": "With `X-Capacity-Source`: the newest heartbeat the record has.",
    "Retry-After": "Seconds after which to try again.",
}


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the route table.

    Attributes:
        answers: type of the answer by success status; None where it has no body, str for text, bytes for
            server-sent events.
        faults: codes of `STATUS_OF` that it may answer with, besides those that follow from the rest.
        headers: names of response headers on success.
        failed: what a 500 of this operation says.
    """

    method: str
    path: str
    handler: Callable[[Request], Awaitable[Response]]
    operation_id: str
    tag: str
    summary: str
    answers: dict[int, Any]
    parameters: tuple[Parameter, ...] = ()
    body: type[BaseModel] | None = None
    faults: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    failed: str | None = None

    @property
    def fault_codes(self) -> dict[int, list[str]]:
        codes = ["internal_error", "invalid_query", *self.faults]
        if "{agent_id}" in self.path:
            codes.append("invalid_agent_id")
        if self.body is not None:
            codes.extend(_BODY_FAULTS)
        by_status: dict[int, list[str]] = {}
        for code in codes:
            by_status.setdefault(STATUS_OF[code], []).append(code)
        return dict(sorted(by_status.items()))

    def described(self) -> dict[str, Any]:
        """Its OpenAPI object, as far as the framework cannot know it."""
        described: dict[str, Any] = {"parameters": self._parameters()}
        if self.body is not None:
            schema = {"schema": {"$ref": REF.format(name=self.body.__name__)}}
            described["requestBody"] = {"required": True, "content": {JSON: schema, MSGPACK: schema}}
        return described

    def responses(self) -> dict[int | str, dict[str, Any]]:
        responses: dict[int | str, dict[str, Any]] = {}
        for status, kind in self.answers.items():
            responses[status] = {"description": "Success" if status < 400 else "Not ready"}
            if kind is not None:
                responses[status]["content"] = _content(kind)
            if self.headers:
                responses[status]["headers"] = {name: _header(name) for name in self.headers}
        for status, codes in self.fault_codes.items():
            fault: dict[str, Any] = {
                "description": "Code: " + ", ".join(f"`{code}`" for code in codes),
                "content": {
                    PROBLEM_TYPE: {
                        "schema": {"$ref": REF.format(name="Problem")},
                        "examples": {code: self._problem(code) for code in codes},
                    }
                },
            }
            if status in {429, 503}:
                fault["headers"] = {"Retry-After": _header("Retry-After")}
            responses[status] = {**fault, **responses.get(status, {})}
        return responses

    def _problem(self, code: str) -> dict[str, Any]:
        # Not by reference: RapiDoc follows none here.
        return {"value": problem_example(code, self.failed if code == "internal_error" else None)}

    def _parameters(self) -> list[dict[str, Any]]:
        in_path = []
        for name in re.findall(r"\{(\w+)\}", self.path):
            uuid = {"type": "string", "format": "uuid"}
            in_path.append({"name": name, "in": "path", "required": True, "schema": uuid})
        in_query = [
            {
                "name": parameter.name,
                "in": "query",
                "required": False,
                "description": parameter.description,
                "schema": parameter.schema,
            }
            for parameter in self.parameters
        ]
        return in_path + in_query


def _content(kind: Any) -> dict[str, Any]:
    if kind is str:
        return {"text/plain": {"schema": {"type": "string"}}}
    if kind is bytes:
        return {"text/event-stream": {"schema": {"type": "string"}}}
    (schema,), _ = msgspec.json.schema_components([kind], ref_template=REF)
    return {JSON: {"schema": schema}}


def _header(name: str) -> dict[str, Any]:
    return {"description": _HEADERS[name], "schema": {"type": "string"}}
