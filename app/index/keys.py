"""Every key string of Headroom. docs/data-model.md describes them; the scripts build the same names."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

LAYOUT: Final = "3"
"""Version of the scheme of sets and fields; another one in Redis forces a rebuild."""

GROUP_INDEX: Final = "index"
GROUP_RECORD: Final = "record"


def encode_pool(pool_name: str) -> str:
    """The pool's name as part of a key: no colon, no space, no brace, so that no two names collide."""
    return quote(pool_name, safe="")


class Keys:
    """The keys of one shard. With more than one shard the number is a hash tag, as Redis Cluster wants it."""

    def __init__(self, shard: int | None = None) -> None:
        self.prefix: Final = "headroom" if shard is None else f"headroom:{{{shard}}}"

    def __eq__(self, other: object) -> bool:
        return self.prefix == other.prefix if isinstance(other, Keys) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.prefix)

    @property
    def heartbeats(self) -> str:
        return f"{self.prefix}:heartbeats"

    @property
    def dead_letters(self) -> str:
        return f"{self.prefix}:dead-letters"

    @property
    def seen(self) -> str:
        return f"{self.prefix}:seen"

    @property
    def silent(self) -> str:
        return f"{self.prefix}:silent"

    @property
    def offline(self) -> str:
        return f"{self.prefix}:offline"

    @property
    def epoch(self) -> str:
        return f"{self.prefix}:epoch"

    @property
    def clock(self) -> str:
        return f"{self.prefix}:clock"

    @property
    def grace(self) -> str:
        return f"{self.prefix}:grace"

    @property
    def receivers(self) -> str:
        return f"{self.prefix}:receivers"

    @property
    def cloned(self) -> str:
        return f"{self.prefix}:cloned"

    @property
    def flapping(self) -> str:
        return f"{self.prefix}:flapping"

    @property
    def offline_after(self) -> str:
        return f"{self.prefix}:offline-after"

    @property
    def events(self) -> str:
        return f"{self.prefix}:events"

    @property
    def cordons(self) -> str:
        return f"{self.prefix}:cordons"

    @property
    def types(self) -> str:
        return f"{self.prefix}:types"

    @property
    def gap(self) -> str:
        return f"{self.prefix}:gap"

    @property
    def rebuild(self) -> str:
        return f"{self.prefix}:rebuild"

    def lease(self, duty: str) -> str:
        return f"{self.prefix}:lease:{duty}"

    def agent(self, agent_id: str) -> str:
        return f"{self.prefix}:agent:{agent_id}"

    def vram(self, agent_type: str) -> str:
        return f"{self.prefix}:{agent_type}:vram"

    def cores(self, agent_type: str) -> str:
        return f"{self.prefix}:{agent_type}:cores"

    def totals(self, agent_type: str, pool_name: str) -> str:
        return f"{self.prefix}:{agent_type}:totals:{encode_pool(pool_name)}"

    def all_totals(self, agent_type: str) -> str:
        """Those of all pools together: no pool's encoded name is a star."""
        return f"{self.prefix}:{agent_type}:totals:*"

    def pools(self, agent_type: str) -> str:
        return f"{self.prefix}:{agent_type}:pools"

    def machines(self, agent_type: str) -> str:
        return f"{self.prefix}:{agent_type}:machines"

    def shapes(self, agent_type: str, pool_name: str | None = None) -> str:
        scope = agent_type if pool_name is None else f"{agent_type}:pool:{encode_pool(pool_name)}"
        return f"{self.prefix}:{scope}:shapes"

    def vram_by_cores(self, agent_type: str, rung_or_band: str, pool_name: str | None = None) -> str:
        """The set of one rung (`8+`) or band (`12-15`), of one pool or of all."""
        scope = agent_type if pool_name is None else f"{agent_type}:pool:{encode_pool(pool_name)}"
        return f"{self.prefix}:{scope}:vram:cores:{rung_or_band}"
