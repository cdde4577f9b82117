"""The order rule: which log entries of an agent take effect. DESIGN.md §2, "Order".

`app/index/scripts/order.lua` is the same rule where it must be atomic with the index; a property test holds
the two together. The recorder uses this one.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

from app.models.identity import StreamId

KEPT_BOOTS: Final = 8
"""How many boots of an agent are remembered, the present one included."""


class Outcome(StrEnum):
    """What became of an entry. Only `APPLIED` changes anything or counts as a sign of life."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"
    REORDERED = "reordered"
    CLONED = "cloned"


class Boot(msgspec.Struct, frozen=True, array_like=True):
    boot_id: str
    seq: int


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What must be remembered of an agent to judge its next entry.

    Attributes:
        last_id: the last applied heartbeat.
        holder: the boot in force, None as long as none was ever named.
        retired: earlier boots, newest first, each with the greatest `seq` that came of it.
    """

    last_id: StreamId
    holder: Boot | None = None
    retired: tuple[Boot, ...] = ()


def advance(
    order: Order | None, stream_id: StreamId, boot: Boot | None, *, offline_after_ms: int
) -> tuple[Outcome, Order]:
    """Judges one entry and returns what is to be remembered afterwards.

    A retired boot may take over again only after the holder has been silent for `offline_after_ms`, with a
    `seq` above its own last one; a live one before that is `CLONED`: two machines share an id.

    Of an earlier boot what changes nothing is remembered all the same: a dead worker's entries are judged after
    later ones, and must leave behind what they would have left in their turn.
    """
    if order is None:
        return Outcome.APPLIED, Order(last_id=stream_id, holder=boot)
    if stream_id <= order.last_id:
        return (
            (Outcome.DUPLICATE, order) if stream_id == order.last_id else (Outcome.REORDERED, _heard(order, boot))
        )
    if boot is None:
        return Outcome.APPLIED, msgspec.structs.replace(order, last_id=stream_id)
    if order.holder is None:
        return Outcome.APPLIED, Order(last_id=stream_id, holder=boot, retired=order.retired)
    known = next((old for old in (order.holder, *order.retired) if old.boot_id == boot.boot_id), None)
    if known is not None and boot.seq <= known.seq:
        return (Outcome.DUPLICATE if boot.seq == known.seq else Outcome.REORDERED), order
    if known is order.holder:
        return Outcome.APPLIED, Order(last_id=stream_id, holder=boot, retired=order.retired)
    if known is not None and stream_id.ms - order.last_id.ms < offline_after_ms:
        return Outcome.CLONED, _heard(order, boot)
    retired = (order.holder, *(old for old in order.retired if old.boot_id != boot.boot_id))
    return Outcome.APPLIED, Order(last_id=stream_id, holder=boot, retired=retired[: KEPT_BOOTS - 1])


def _heard(order: Order, boot: Boot | None) -> Order:
    """With the `seq` of an earlier boot, if that is known: another may be from before the agent was forgotten."""
    if boot is None or order.holder is None or boot.boot_id == order.holder.boot_id:
        return order
    known = {old.boot_id: old for old in order.retired}
    if boot.boot_id not in known or boot.seq <= known[boot.boot_id].seq:
        return order
    return msgspec.structs.replace(order, retired=tuple((known | {boot.boot_id: boot}).values()))


def recall(order: Order, retired: tuple[Boot, ...]) -> Order:
    """Adds earlier boots that somebody else remembers, who knows more of them: his come first."""
    newest: dict[str, Boot] = {}
    for boot in (*retired, *order.retired):
        if order.holder is not None and boot.boot_id == order.holder.boot_id:
            continue
        known = newest.get(boot.boot_id)
        if known is None or known.seq < boot.seq:
            newest[boot.boot_id] = boot
    return msgspec.structs.replace(order, retired=tuple(newest.values())[: KEPT_BOOTS - 1])
