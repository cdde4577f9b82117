"""Every fault as RFC 9457 problem+json. The one table from a domain error's code to its status is here."""

from __future__ import annotations

import http
import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

import msgspec
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from app.errors import HeadroomError

log = logging.getLogger(__name__)

PROBLEM_TYPE: Final = "application/problem+json"
MAX_ERRORS: Final = 100
"""Most field errors in one answer; a body can be wrong in more places than anybody reads."""


BODY: Final = "body"
"""The `field` of a fault that lies in the body as a whole."""


class FieldError(msgspec.Struct, frozen=True):
    """One fault of the input. `field` is a path of known names and indices, never what was sent."""

    field: str
    code: str
    message: str


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of every answer that is not a success."""

    type: str = msgspec.field(default_factory=lambda: "about:blank")
    title: str
    status: int
    detail: str
    code: str
    errors: Sequence[FieldError] = ()


class InvalidInputError(HeadroomError):
    """Input with faults that can be named one by one."""

    def __init__(self, errors: Sequence[FieldError], detail: str | None = None) -> None:
        super().__init__(detail)
        self.errors = errors


class InvalidParametersError(InvalidInputError):
    code = "invalid_query"
    default_detail = "The query has invalid parameters"


class InvalidBodyError(InvalidInputError):
    code = "invalid_body"
    default_detail = "The body has invalid fields"


class InvalidPathError(HeadroomError):
    code = "invalid_path"
    default_detail = "The path has control characters"


class EmptyBodyError(HeadroomError):
    code = "empty_body"
    default_detail = "The request has no body"


class MalformedBodyError(HeadroomError):
    code = "malformed_body"
    default_detail = "The body cannot be decoded"


class BodyTooLargeError(HeadroomError):
    code = "body_too_large"
    default_detail = "The body is larger than this server takes"


class UnsupportedMediaTypeError(HeadroomError):
    code = "unsupported_media_type"
    default_detail = "Content-Type must be application/json (in UTF-8) or application/msgpack"


class UnsupportedEncodingError(HeadroomError):
    code = "unsupported_content_encoding"
    default_detail = "Content-Encoding is not supported; send the body as it is"


class UnauthorizedError(HeadroomError):
    code = "unauthorized"
    default_detail = "Authorization must be Bearer with the token of this server"


class RouteNotFoundError(HeadroomError):
    code = "not_found"
    default_detail = "There is nothing at this path"


class MethodNotAllowedError(HeadroomError):
    code = "method_not_allowed"
    default_detail = "This path does not take this method; Allow says which it takes"


STATUS_OF: Final[dict[str, int]] = {
    "invalid_agent_id": 400,
    "invalid_cursor": 400,
    "invalid_path": 400,
    "invalid_query": 400,
    "empty_body": 400,
    "malformed_body": 400,
    "bad_request": 400,
    "unauthorized": 401,
    "agent_not_found": 404,
    "not_found": 404,
    "plan_not_found": 404,
    "task_not_found": 404,
    "method_not_allowed": 405,
    "agent_archived": 409,
    "task_state": 409,
    "body_too_large": 413,
    "unsupported_media_type": 415,
    "unsupported_content_encoding": 415,
    "invalid_body": 422,
    "backlog_full": 429,
    "too_many_tasks": 429,
    "internal_error": 500,
    "startup_refused": 500,
    "undecodable_entry": 500,
    "unexpected_answer": 500,
    "unavailable": 503,
    "index_unavailable": 503,
    "index_rebuilding": 503,
    "record_unavailable": 503,
    "capacity_unknown": 503,
    "too_many_waiting": 503,
}

_encode = msgspec.json.Encoder().encode


class ProblemResponse(Response):
    media_type = PROBLEM_TYPE


def problem(error: HeadroomError, *, headers: dict[str, str] | None = None) -> Response:
    status = STATUS_OF[error.code]
    all_headers = dict(headers or {})
    if error.retry_after_s is not None:
        all_headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, BodyTooLargeError):
        # The rest of the body is still on its way; the connection can serve nothing after it.
        all_headers["Connection"] = "close"
    body = Problem(
        title=http.HTTPStatus(status).phrase,
        status=status,
        detail=error.detail,
        code=error.code,
        errors=error.errors[:MAX_ERRORS] if isinstance(error, InvalidInputError) else (),
    )
    return ProblemResponse(_encode(body), status_code=status, headers=all_headers)


class _BadRequestError(HeadroomError):
    code: ClassVar[str] = "bad_request"
    default_detail = "The request cannot be processed"


_FRAMEWORK: Final[dict[int, type[HeadroomError]]] = {
    404: RouteNotFoundError,
    405: MethodNotAllowedError,
    413: BodyTooLargeError,
    415: UnsupportedMediaTypeError,
    500: HeadroomError,
}
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


async def _on_domain_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, HeadroomError):
        raise error
    if STATUS_OF[error.code] >= 500:
        log.info("Answered %d: %s", STATUS_OF[error.code], error.code)
    return problem(error)


async def _on_framework_validation(_request: Request, error: Exception) -> Response:
    """FastAPI's own validation, for routes that use it: its faults without what was sent."""
    if not isinstance(error, RequestValidationError):
        raise error
    faults = [(str(fault["loc"][0]), ".".join(map(str, fault["loc"][1:])), fault) for fault in error.errors()]
    errors = [FieldError(field, str(fault["type"]), str(fault["msg"])) for _, field, fault in faults]
    in_body = any(place == "body" for place, _, _ in faults)
    return problem(InvalidBodyError(errors) if in_body else InvalidParametersError(errors))


def add_problem_handlers(
    app: FastAPI, *, failed: Mapping[str, str | None], allowed: Mapping[str, Sequence[str]]
) -> None:
    """Answers every error of `app` as a problem.

    Args:
        app: the application.
        failed: what the 500 of an operation says, by operation id, where it says something of its own.
        allowed: the methods of a path, which the framework would name one at a time.
    """

    async def on_http_exception(request: Request, error: Exception) -> Response:
        """What the framework itself refuses: unknown paths and methods."""
        if not isinstance(error, HTTPException):
            raise error
        headers = dict(error.headers or {})
        if error.status_code == 404 and _CONTROL.search(request.scope["path"]):
            return problem(InvalidPathError())
        if error.status_code == 405:
            path = getattr(request.scope.get("route"), "path", "")
            headers["Allow"] = ", ".join(allowed.get(path, (headers.get("Allow", "GET"),)))
        return problem(_FRAMEWORK.get(error.status_code, _BadRequestError)(), headers=headers)

    async def on_unforeseen(request: Request, _error: Exception) -> Response:
        # The framework raises the error again after this answer, so the server logs its traceback.
        operation_id = getattr(request.scope.get("route"), "operation_id", None)
        return problem(HeadroomError(failed.get(operation_id or "")))

    app.add_exception_handler(HeadroomError, _on_domain_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_framework_validation)
    app.add_exception_handler(Exception, on_unforeseen)
