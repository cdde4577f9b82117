"""Recorder: the stream's group `record` -> the durable record. Commits first, acks last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from app.telemetry import logger

if TYPE_CHECKING:
    from app.index.states import IndexStates
    from app.index.stream import GroupReader
    from app.service.ports import RecordWriter

_THIN_EVERY_S: Final = 600.0

_log = logger(__name__)


class Recorder:
    """One round: read a batch, commit it by the order rule, set aside what can never be written, ack."""

    name = "recorder"
    pause_s = 0.0

    def __init__(self, reader: GroupReader, record: RecordWriter) -> None:
        self._reader = reader
        self._record = record

    async def run_once(self) -> None:
        entries = await self._reader.read()
        if not entries:
            return
        batch = await self._record.write(entries)
        # After what may fail and be tried again: each further try would set the same entries aside once more.
        for entry in entries:
            if entry.body is None:
                await self._reader.dead_letter(entry.stream_id, entry.fault)
        for stream_id, reason in batch.rejected:
            await self._reader.dead_letter(stream_id, reason)
        await self._reader.ack([entry.stream_id for entry in entries])


class Reconcile:
    """Brings the record up to the index where log entries were trimmed before they were recorded.

    The current state becomes exact; what happened in between stays unknown, and the record says so.
    """

    name = "reconcile"
    pause_s = 1.0

    def __init__(self, states: IndexStates, record: RecordWriter) -> None:
        self._states = states
        self._record = record

    async def run_once(self) -> None:
        await self.reconcile()

    async def reconcile(self) -> int:
        """Returns how many agents were held against the record; 0 without a gap."""
        gap = await self._states.gap()
        if gap is None:
            return 0
        agents = 0
        async for entries in self._states.as_log():
            await self._record.write(entries)
            agents += len({entry.body.agent_id for entry in entries if entry.body is not None})
        await self._record.mark_gap(gap)
        await self._states.close_gap(gap)
        _log.warning("Reconciled the record with the index after a gap", agents=agents, lost_entries=gap.entries)
        return agents


class Thinning:
    """Deletes what is past its retention, now and then."""

    name = "thinning"
    pause_s = _THIN_EVERY_S

    def __init__(self, record: RecordWriter) -> None:
        self._record = record

    async def run_once(self) -> None:
        deleted = await self._record.thin()
        if deleted:
            _log.info("Deleted what is past its retention", rows=deleted)
