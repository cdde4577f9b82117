"""The rules of single values that queries and bodies share, each with its stable code and its message."""

from __future__ import annotations

from typing import Final

from app.models.capacity import MAX_POOL_NAME, NOT_TEXT

__all__ = ["MAX_HOSTNAME", "MAX_POOL_NAME", "TEXT_PATTERN", "FieldFaultError", "check_length", "check_text"]

MAX_HOSTNAME: Final = 255
TEXT_PATTERN: Final = r"^[^\x00-\x1f\x7f-\x9f]*$"
"""What OpenAPI shows of `check_text`; surrogates are no text there to begin with."""


class FieldFaultError(ValueError):
    """A value that breaks a rule. Neither `code` nor `message` holds any of the value."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(message)


def check_text(value: str) -> str:
    """Controls (NUL, CR, LF among them) would forge log lines and headers; lone surrogates are no text."""
    if NOT_TEXT.search(value):
        raise FieldFaultError("not_text", "Control characters and lone surrogates are not allowed")
    return value


def check_length(value: str, shortest: int, longest: int) -> str:
    if not shortest <= len(value) <= longest:
        raise FieldFaultError("length", f"Must have {shortest} to {longest} characters")
    return value
