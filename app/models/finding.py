"""What an audit found to differ."""

from __future__ import annotations

import msgspec


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One difference.

    Attributes:
        where: `index` (sets against hashes), `totals`, or `record` (hashes against the record).
        subject: the agent's id, or the key.
        what: one sentence for a person.
        repaired: whether the audit put it right.
    """

    where: str
    subject: str
    what: str
    repaired: bool = False
