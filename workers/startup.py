"""What every process checks of its stores before it works with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.errors import UnavailableError
from app.telemetry import logger

if TYPE_CHECKING:
    from app.index.opening import Index
    from app.record import Record

_log = logger(__name__)


async def refuse_unfit_stores(index: Index, record: Record) -> None:
    """Raises StartupRefusedError for a server that would lose data or a schema of another version.

    A store that is away is no reason to refuse: it may come back, and the process knows how to wait for it.
    """
    for check in (index.refuse_unfit_server, record.require_migrated):
        try:
            await check()
        except UnavailableError as away:
            _log.warning("A store does not answer yet", code=away.code)
