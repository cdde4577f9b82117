"""From a request to Python values: media type, size limit, and decoding that refuses rather than hangs.

What is decoded here is any JSON or msgpack; what it means is the schemas' affair.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

import msgpack
from starlette.requests import Request

from app.api.problems import (
    BODY,
    BodyTooLargeError,
    EmptyBodyError,
    FieldError,
    InvalidBodyError,
    MalformedBodyError,
    UnsupportedEncodingError,
    UnsupportedMediaTypeError,
)

JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"

_LONGEST_ARRAY: Final = 16_384
"""The decoder allocates what a header announces, at up to 1,024 levels: this bounds it to memory that is there."""
_DISCARD_S: Final = 1.0


async def read_document(request: Request, *, max_bytes: int) -> Any:
    """Reads and decodes the body by its media type.

    Raises:
        UnsupportedMediaTypeError, UnsupportedEncodingError: before anything is read.
        BodyTooLargeError: announced or found to be above `max_bytes`.
        EmptyBodyError, MalformedBodyError: nothing, or nothing that can be decoded.
        InvalidBodyError: well-formed, with values that no document may have.
    """
    media_type = _media_type(request)
    body = await _read(request, max_bytes)
    if not body:
        raise EmptyBodyError
    return _unpack(body) if media_type == MSGPACK else await _parse(body)


def _media_type(request: Request) -> str:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in {"identity", ""}:
        raise UnsupportedEncodingError
    values = request.headers.getlist("content-type")
    if len(values) != 1:
        raise UnsupportedMediaTypeError
    media_type, _, parameters = values[0].partition(";")
    media_type = media_type.strip().lower()
    if media_type not in {JSON, MSGPACK}:
        raise UnsupportedMediaTypeError
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset" and value.strip().strip('"').lower() not in {"utf-8", "utf8"}:
            raise UnsupportedMediaTypeError
    return media_type


async def _read(request: Request, max_bytes: int) -> bytes:
    announced = request.headers.get("content-length", "")
    too_large = announced.isascii() and announced.isdigit() and int(announced) > max_bytes
    chunks: list[bytes] = []
    size = 0
    more = not too_large
    while more:
        chunk, more = await _receive(request)
        size += len(chunk)
        if size > max_bytes:
            too_large = True
            break
        chunks.append(chunk)
    if too_large:
        # A connection closed over unread bytes is reset, and the client would never read the answer.
        await _discard(request, max_bytes)
        raise BodyTooLargeError(f"The body is larger than {max_bytes} bytes")
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def _receive(request: Request) -> tuple[bytes, bool]:
    message = await request.receive()
    if message["type"] != "http.request":
        raise MalformedBodyError("The body ended before it was complete")
    return message.get("body", b""), message.get("more_body", False)


async def _discard(request: Request, max_bytes: int) -> None:
    """Reads on for a moment, up to as much again, so that most clients have sent all they had."""
    left = max_bytes
    more = True
    try:
        async with asyncio.timeout(_DISCARD_S):
            while more and left > 0:
                chunk, more = await _receive(request)
                left -= len(chunk)
    except (TimeoutError, MalformedBodyError):
        return


async def _parse(body: bytes) -> Any:
    """JSON by Python's parser: NaN, Infinity and 1e999 become floats that validation refuses field by field."""
    try:
        text = body.decode("utf-8")
        try:
            document = json.loads(text)
        except RecursionError:
            # The stack of a request leaves less than a thousand levels; a thread starts with nearly all.
            document = await asyncio.to_thread(json.loads, text)
        if "\\ud" in text or "\\uD" in text:
            await asyncio.to_thread(_refuse_lone_surrogates, document)
    except RecursionError:
        raise MalformedBodyError("The body is nested too deeply") from None
    except ValueError:
        # Covers broken JSON, broken UTF-8, a byte order mark, and integers beyond Python's digit limit.
        raise MalformedBodyError("The body is not JSON in UTF-8") from None
    return document


def _refuse_lone_surrogates(document: Any) -> None:
    """Raises ValueError. Only escapes can bring them in, so only texts with such escapes are checked."""
    json.dumps(document, ensure_ascii=False).encode("utf-8")


def _unpack(body: bytes) -> Any:
    try:
        return _unpackb(body, strict_map_key=True)
    except _ExtensionTypeError:
        raise InvalidBodyError([FieldError(BODY, "type", "Extension types are not taken")]) from None
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException):
        pass
    # Refused: broken bytes, or sound ones with keys that are no text. The lenient decoder tells which.
    try:
        _unpackb(body, strict_map_key=False)
    except (ValueError, OverflowError, RecursionError, msgpack.UnpackException):
        raise MalformedBodyError("The body is not msgpack") from None
    except (TypeError, _ExtensionTypeError):
        pass
    raise InvalidBodyError([FieldError(BODY, "type", "Keys must be text")])


class _ExtensionTypeError(Exception):
    pass


def _refuse_extension(_code: int, _data: bytes) -> Any:
    raise _ExtensionTypeError


def _unpackb(body: bytes, *, strict_map_key: bool) -> Any:
    longest = min(len(body), _LONGEST_ARRAY)
    return msgpack.unpackb(
        body,
        raw=False,
        strict_map_key=strict_map_key,
        timestamp=0,
        ext_hook=_refuse_extension,
        max_str_len=len(body),
        max_bin_len=len(body),
        max_ext_len=len(body),
        max_array_len=longest,
        max_map_len=longest,
    )
