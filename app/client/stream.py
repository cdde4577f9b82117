"""Server-sent events as they come over a connection, line by line."""

from __future__ import annotations

import msgspec

from app.errors import UnexpectedAnswerError
from app.models.capacity import AgentStatus
from app.models.change import Change, ChangeKind
from app.models.identity import AgentId, StreamId

SILENT_AFTER_S = 40.0
"""The server says something every 15 s; after more than twice that the connection is taken for dead."""


class _Data(msgspec.Struct, frozen=True):
    kind: ChangeKind
    agent_id: AgentId | None = None
    agent_type: str | None = None
    pool_name: str | None = None
    placeable: bool = False
    gpu_vram_available_gb: float = 0.0
    cpu_cores_available: int = 0
    status: AgentStatus | None = None


_decoder = msgspec.json.Decoder(_Data)


class EventReader:
    """`read` returns a change with the line that completes one."""

    def __init__(self) -> None:
        self._id = ""
        self._data = ""

    def read(self, line: str) -> Change | None:
        """Raises UnexpectedAnswerError for what Headroom does not send."""
        name, _, value = line.partition(": ")
        if name == "id":
            self._id = value
        elif name == "data":
            self._data = value
        elif not line and self._data:
            data, self._data = self._data, ""
            return _change(self._id, data)
        return None


def _change(version: str, text: str) -> Change:
    try:
        data = _decoder.decode(text)
        return Change(
            version=StreamId.parse(version),
            kind=data.kind,
            agent_id=data.agent_id,
            agent_type=data.agent_type or "",
            pool_name=data.pool_name or "",
            placeable=data.placeable,
            gpu_vram_available_gb=data.gpu_vram_available_gb,
            cpu_cores_available=data.cpu_cores_available,
            status=data.status,
        )
    except ValueError as error:
        raise UnexpectedAnswerError from error
