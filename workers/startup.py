"""What every process checks of its stores before it works with them, and of one that was away then, later."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from app.errors import UnavailableError
from app.telemetry import logger

if TYPE_CHECKING:
    from app.index.opening import Index
    from app.record import Record

_LOOK_EVERY_S: Final = 1.0
_DONE_S: Final = 3600.0

_log = logger(__name__)


class StoreCheck:
    """One round: asks the stores that have not been checked yet whether this build can work with them.

    A store that is away is no reason to refuse: it may come back, and the process knows how to wait for it. It is
    checked when it does; a loop that raises StartupRefusedError ends its process.
    """

    name = "store-check"

    def __init__(self, index: Index, record: Record) -> None:
        self._left: dict[str, Callable[[], Awaitable[None]]] = {
            "index": index.refuse_unfit_server,
            "record": record.require_migrated,
        }
        self._away: set[str] = set()

    @property
    def pause_s(self) -> float:
        return _LOOK_EVERY_S if self._left else _DONE_S

    async def run_once(self) -> None:
        """Raises StartupRefusedError for a server that would lose data or a schema of another version."""
        for store, check in tuple(self._left.items()):
            try:
                await check()
            except UnavailableError as away:
                if store not in self._away:
                    self._away.add(store)
                    _log.warning("A store does not answer yet", store=store, code=away.code)
            else:
                del self._left[store]
                if store in self._away:
                    _log.info("A store that did not answer at the start can be worked with", store=store)
