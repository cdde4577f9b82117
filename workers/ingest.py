"""Ingest: the stream's group `index` -> the sorted sets. Applies first, acks last."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from app.errors import UndecodableEntryError
from app.models.heartbeat import Heartbeat
from app.models.order import Outcome
from app.telemetry import CLOCK_SKEW_SECONDS, HEARTBEATS, VISIBILITY_SECONDS, logger

if TYPE_CHECKING:
    from app.index.stream import GroupReader
    from app.index.upkeep import Upkeep
    from app.models.identity import StreamId

_log = logger(__name__)


class Ingest:
    """One round: read a batch, apply its heartbeats, set aside what cannot be read, ack.

    Transitions in the log are already in the index: the script that made them added them.
    """

    name = "ingest"
    pause_s = 0.0

    def __init__(self, reader: GroupReader, upkeep: Upkeep) -> None:
        self._reader = reader
        self._upkeep = upkeep

    async def run_once(self) -> None:
        entries = await self._reader.read()
        heartbeats = [(entry.stream_id, entry.body) for entry in entries if isinstance(entry.body, Heartbeat)]
        outcomes = await self._upkeep.apply(heartbeats, behind=self._reader.behind)
        # After what may fail and be tried again: each further try would set the same entries aside once more.
        for entry in entries:
            if entry.body is None:
                await self._reader.dead_letter(entry.stream_id, entry.fault)
        for (stream_id, heartbeat), outcome in zip(heartbeats, outcomes, strict=True):
            if isinstance(outcome, UndecodableEntryError):
                reason = str(outcome.__cause__)
                _log.error("The index cannot take a heartbeat", agent_id=heartbeat.agent_id, reason=reason)
                await self._reader.dead_letter(stream_id, outcome.detail)
        await self._reader.ack([entry.stream_id for entry in entries])
        self._count(heartbeats, outcomes)

    @staticmethod
    def _count(
        heartbeats: list[tuple[StreamId, Heartbeat]], outcomes: list[Outcome | UndecodableEntryError]
    ) -> None:
        for kind, number in Counter(one for one in outcomes if isinstance(one, Outcome)).items():
            HEARTBEATS.labels(outcome=kind.value).inc(number)
        if heartbeats:
            # The one that waited longest stands for its batch.
            VISIBILITY_SECONDS.observe(max(0.0, time.time() * 1000 - heartbeats[0][0].ms) / 1000)
        for (stream_id, heartbeat), outcome in zip(heartbeats, outcomes, strict=True):
            if heartbeat.sent_at is not None:
                CLOCK_SKEW_SECONDS.observe(abs(heartbeat.sent_at.timestamp() - stream_id.ms / 1000))
            if outcome is Outcome.CLONED:
                _log.warning("Two machines report under one id", agent_id=heartbeat.agent_id)
