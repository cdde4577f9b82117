"""Forgetting an agent: the one thing about agents that concerns index and record alike."""

from __future__ import annotations

import logging

from app.errors import AgentNotFoundError, RecordUnavailableError
from app.models.identity import AgentId
from app.service.ports import AgentRecord, CapacityIndex

log = logging.getLogger(__name__)


class AgentService:
    def __init__(self, index: CapacityIndex, record: AgentRecord) -> None:
        self._index = index
        self._record = record

    async def forget(self, agent_id: AgentId) -> None:
        """Takes an agent out of index and record; its next heartbeat registers it anew.

        Raises:
            AgentNotFoundError: neither knows it.
            IndexUnavailableError: nothing was forgotten.
            RecordUnavailableError: the agent was in the record only, and the record is away.
        """
        # The index first: its log entry makes the recorder forget too, so a record that is away, or a death
        # between the two calls, leaves nothing behind that a rebuild would bring back.
        position = await self._index.forget(agent_id)
        try:
            recorded = await self._record.forget(agent_id, position=position)
        except RecordUnavailableError:
            if position is None:
                raise
            recorded = True
        if position is None and not recorded:
            raise AgentNotFoundError
        log.info("Forgot agent %s", agent_id)
