"""Says that heartbeats are taken in: after a time when nobody did, silence says nothing about the agents."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from app.service.ports import Receivers

log = logging.getLogger(__name__)

_EVERY_S: Final = 5.0
_GAP_S: Final = 15.0


class ReceiverBeat:
    """A loop of the API process. What it raises is the runner's to count; heartbeats are taken in all the same.

    Args:
        receivers: where the signs of life are kept.
        receiver: the name of this process there.
        refused: whether heartbeats were refused since it was asked last.
    """

    name = "receiving"
    pause_s = _EVERY_S

    def __init__(self, receivers: Receivers, receiver: str, *, refused: Callable[[], bool]) -> None:
        self._receivers = receivers
        self._receiver = receiver
        self._refused = refused

    async def run_once(self) -> None:
        if self._refused():
            # Whoever was refused is silent because of us, and is told to stay so for a while.
            return
        if await self._receivers.receive(self._receiver, gap_s=_GAP_S):
            log.warning("Nobody took heartbeats in for a while: no agent is declared offline for now")
