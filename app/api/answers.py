"""Success answers, encoded once with msgspec: floats keep their decimal point, nothing is validated twice."""

from __future__ import annotations

import gzip
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote_plus

import msgspec
from starlette.requests import Request
from starlette.responses import Response

_encode = msgspec.json.Encoder().encode

_WORTH_COMPRESSING: Final = 2_000
_FASTEST: Final = 1
_PLAIN: Final = re.compile(r"[A-Za-z0-9_.~-]*", re.ASCII)

NO_STORE: Final = {"Cache-Control": "no-store"}


class JsonResponse(Response):
    media_type = "application/json"


def answer(document: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return JsonResponse(_encode(document), status_code=status, headers=NO_STORE if headers is None else headers)


def next_link(request: Request, sent: Mapping[str, str], **following: str) -> str:
    """A `Link` header to the next page: the same path and parameters, and where to go on."""
    query = "&".join(f"{name}={_quoted(value)}" for name, value in {**sent, **following}.items())
    return f'<{request.scope["path"]}?{query}>; rel="next"'


def _quoted(value: object) -> str:
    text = str(value)
    # Most values are numbers and words; asking each character whether it may stay takes longer than the search.
    return text if _PLAIN.fullmatch(text) else quote_plus(text)


def compressed(request: Request, response: Response) -> Response:
    """Where the client takes gzip and it is worth the time."""
    response.headers["Vary"] = "Accept-Encoding"
    body = bytes(response.body)
    if len(body) >= _WORTH_COMPRESSING and "gzip" in request.headers.get("accept-encoding", ""):
        response.body = gzip.compress(body, _FASTEST)
        response.headers["Content-Encoding"] = "gzip"
        response.headers["Content-Length"] = str(len(response.body))
    return response
