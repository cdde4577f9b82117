"""An operator's "place nothing here"."""

from __future__ import annotations

from datetime import datetime

import msgspec


class Cordon(msgspec.Struct, frozen=True, kw_only=True):
    """Who asked for it and why.

    Attributes:
        since: when it was set.
        expires_at: when it ends by itself; None when only an operator ends it.
    """

    reason: str
    actor: str
    since: datetime
    expires_at: datetime | None = None
