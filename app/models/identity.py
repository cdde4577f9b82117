"""Agent ids, agent types and stream ids: the three things everything else is keyed by."""

from __future__ import annotations

import re
from typing import NamedTuple, NewType
from uuid import UUID

from app.errors import InvalidAgentIdError

AgentId = NewType("AgentId", str)
"""A UUID in its canonical form: lower case, with dashes. Sorts like the UUID itself."""

AGENT_TYPE_PATTERN = r"[a-z][a-z0-9-]{0,31}"
DEFAULT_AGENT_TYPE = "desktop"
DEFAULT_POOL_NAME = "default"
MAX_POOL_NAME = 128

# uuid.UUID() also takes braces, "urn:uuid:" and non-ASCII digits; an id must have one spelling only.
_AGENT_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_AGENT_TYPE = re.compile(AGENT_TYPE_PATTERN)
_STREAM_ID = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")


def parse_agent_id(value: str | UUID) -> AgentId:
    """Returns the canonical form.

    Raises:
        InvalidAgentIdError: not a UUID in its usual spelling.
    """
    text = str(value)
    if text.isascii():
        text = text.lower()
        if _AGENT_ID.fullmatch(text):
            return AgentId(text)
    raise InvalidAgentIdError


def is_agent_id(text: str) -> bool:
    """Whether it is the canonical form already."""
    return _AGENT_ID.fullmatch(text) is not None


def is_agent_type(text: str) -> bool:
    return _AGENT_TYPE.fullmatch(text) is not None


class StreamId(NamedTuple):
    """The id of a log entry: receive time in ms by Redis's clock, and a counter within that ms."""

    ms: int
    n: int = 0

    @classmethod
    def parse(cls, text: str | bytes) -> StreamId:
        """Raises ValueError when the text is no stream id."""
        decoded = text.decode("ascii") if isinstance(text, bytes) else text
        if not _STREAM_ID.fullmatch(decoded):
            raise ValueError("not a stream id")
        ms, n = decoded.split("-")
        return cls(int(ms), int(n))

    def __str__(self) -> str:
        return f"{self.ms}-{self.n}"
