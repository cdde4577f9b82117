"""Parts of a world that die or are away when the test says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from app.errors import RecordUnavailableError
from app.models.identity import StreamId
from app.models.log import LogEntry

Death = Literal["read", "written"]


class WorkerDiedError(BaseException):
    """Passes every `except Exception`, as a SIGKILL would."""


class MortalReader:
    """A group's reader that dies after it has read, or before it acknowledges what was written."""

    def __init__(self, reader: Any, death: Death) -> None:
        self._reader = reader
        self._death = death

    async def read(self) -> list[LogEntry]:
        entries: list[LogEntry] = await self._reader.read()
        if self._death == "read":
            raise WorkerDiedError
        return entries

    @property
    def behind(self) -> bool:
        return bool(self._reader.behind)

    async def ack(self, _stream_ids: Sequence[StreamId]) -> None:
        raise WorkerDiedError

    async def dead_letter(self, stream_id: StreamId, reason: str) -> None:
        await self._reader.dead_letter(stream_id, reason)


class SometimesAway:
    """A port of the record behind a switch; while it is away every call says so."""

    def __init__(self, port: Any, *, away: Callable[[], bool]) -> None:
        self._port = port
        self._away = away

    def __getattr__(self, name: str) -> Any:
        if self._away():
            raise RecordUnavailableError
        return getattr(self._port, name)
