"""The keyset cursor of a search as planners see it: opaque, URL-safe, and refused unless exactly ours."""

from __future__ import annotations

import base64
import binascii
import math
import struct
from typing import Final
from uuid import UUID

from app.errors import InvalidCursorError
from app.models.capacity import Cursor
from app.models.identity import AgentId

_LAYOUT: Final = struct.Struct(">Bd16s")
_VERSION: Final = 1

CURSOR_PATTERN: Final = "^A[Q-X][A-Za-z0-9_-]{31}[AQgw]$"
"""What the layout looks like in base64: the version's bits first, and no bits left over at the end."""


def encode_cursor(cursor: Cursor) -> str:
    packed = _LAYOUT.pack(_VERSION, cursor.gpu_vram_available_gb, UUID(cursor.agent_id).bytes)
    return base64.urlsafe_b64encode(packed).rstrip(b"=").decode("ascii")


def decode_cursor(text: str) -> Cursor:
    """Raises InvalidCursorError unless `encode_cursor` could have written the text."""
    try:
        packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        version, vram_gb, agent_id = _LAYOUT.unpack(packed)
    except (ValueError, binascii.Error, struct.error):
        raise InvalidCursorError from None
    if version != _VERSION or not math.isfinite(vram_gb) or vram_gb < 0.0:
        raise InvalidCursorError
    cursor = Cursor(vram_gb, AgentId(str(UUID(bytes=agent_id))))
    if encode_cursor(cursor) != text:  # another spelling of the same bits
        raise InvalidCursorError
    return cursor
