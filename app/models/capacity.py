"""What an agent has free, what a planner asks for, and the rules that need no store to be decided."""

from __future__ import annotations

import re
import sys
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from app.errors import InvalidQueryError
from app.models.identity import AGENT_TYPE_PATTERN, DEFAULT_AGENT_TYPE, AgentId

if TYPE_CHECKING:
    from app.models.heartbeat import ResourceMetrics

DEFAULT_LIMIT: Final = 1_000
MAX_LIMIT: Final = 10_000
MAX_CORES: Final = 65_536
MAX_MIN_CORES: Final = 2**31 - 1
"""Most cores a search may ask for; above MAX_CORES it simply matches nothing."""
MAX_AGE_S: Final = 1e9
"""Largest `max_age_s` of a search, so that it stays exact in ms."""
MAX_POOL_NAME: Final = 128
MAX_WAIT_S: Final = 300.0
"""Longest that a search may wait for something to fit."""


class AgentStatus(StrEnum):
    ONLINE = "online"
    BUSY = "busy"
    OFFLINE = "offline"


class GpuType(StrEnum):
    NVIDIA = "nvidia"
    AMD = "amd"
    INTEL = "intel"
    NONE = "none"


Source = Literal["index", "record"]


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """Metrics with every gap filled as DESIGN.md §3 says; the form that is indexed, recorded and answered."""

    cpu_cores_available: int = 0
    cpu_cores_physical: int = 0
    cpu_load_1min: float = 0.0
    cpu_load_5min: float = 0.0
    cpu_percent: float = 0.0
    memory_available_gb: float = 0.0
    memory_percent: float = 0.0
    gpu_vram_available_gb: float = 0.0
    gpu_vram_total_gb: float = 0.0
    gpu_type: GpuType = GpuType.NONE

    @classmethod
    def of(cls, metrics: ResourceMetrics | None) -> Resources:
        """Fills gaps: no metrics at all reads as zeros; otherwise missing cores count as 1, the rest as 0."""
        if metrics is None:
            return cls()
        sent = {name: value for name, value in msgspec.structs.asdict(metrics).items() if value is not None}
        return cls(**{"cpu_cores_available": 1, **sent})


class AgentCapacity(msgspec.Struct, frozen=True, kw_only=True):
    """One agent, in the order and with the names of `GET /api/v1/agents/{agent_id}/capacity`.

    `timestamp` is the last heartbeat's receive time. A silent agent reads `offline` before any sweep saw it.
    """

    agent_id: AgentId
    status: AgentStatus
    cpu_cores_available: int
    cpu_cores_physical: int
    cpu_load_1min: float
    cpu_load_5min: float
    cpu_percent: float
    memory_available_gb: float
    memory_percent: float
    gpu_vram_available_gb: float
    gpu_vram_total_gb: float
    gpu_type: GpuType
    timestamp: datetime


class AvailableCapacity(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a search: an agent that has at least what was asked for, free and fresh."""

    agent_id: AgentId
    agent_type: str
    pool_name: str
    status: AgentStatus
    gpu_vram_available_gb: float
    cpu_cores_available: int
    cpu_load_1min: float
    last_heartbeat_at: datetime


class Cursor(msgspec.Struct, frozen=True):
    """The last row of a page; the next page starts below it in the order (free VRAM, id), both descending."""

    gpu_vram_available_gb: float
    agent_id: AgentId


class CapacityQuery(msgspec.Struct, frozen=True, kw_only=True):
    """A planner's question. `after` continues below a row of an earlier answer."""

    min_gpu_vram_gb: float = 0.0
    min_cpu_cores: int = 1
    agent_type: str = DEFAULT_AGENT_TYPE
    pool_name: str | None = None
    gpu_type: GpuType | None = None
    min_memory_gb: float = 0.0
    max_age_s: float | None = None
    limit: int = DEFAULT_LIMIT
    after: Cursor | None = None

    @property
    def counted(self) -> bool:
        """Whether the sets' counts give the total: no filter that the sets do not know."""
        return self.gpu_type is None and self.min_memory_gb <= 0.0 and self.max_age_s is None


class CapacityPage(msgspec.Struct, frozen=True, kw_only=True):
    """An answer. `total` is None where a filter makes it inexact or the source did not count.

    Attributes:
        more: whether rows below the last one may exist; `cursor` then continues.
        stopped_at: where a search stopped that looked at very many agents which its filters refused.
        as_of: how old the answer may be: the newest heartbeat of the record; None from the index (now).
    """

    agents: list[AvailableCapacity]
    more: bool = False
    total: int | None = None
    stopped_at: Cursor | None = None
    source: Source = "index"
    as_of: datetime | None = None

    @property
    def cursor(self) -> Cursor | None:
        if not self.more:
            return None
        if self.stopped_at is not None or not self.agents:
            return self.stopped_at
        last = self.agents[-1]
        return Cursor(last.gpu_vram_available_gb, last.agent_id)


_AGENT_TYPE: Final = re.compile(AGENT_TYPE_PATTERN)
NOT_TEXT: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def check_query(query: CapacityQuery) -> None:
    """Raises InvalidQueryError for what the HTTP edge would refuse, for callers that come without it."""
    for amount, most in (
        (query.min_gpu_vram_gb, sys.float_info.max),
        (query.min_memory_gb, sys.float_info.max),
        (0.0 if query.max_age_s is None else query.max_age_s, MAX_AGE_S),
    ):
        if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 <= amount <= most:
            raise InvalidQueryError("min_gpu_vram_gb, min_memory_gb and max_age_s are finite and not negative")
    cores, limit, pool_name = query.min_cpu_cores, query.limit, query.pool_name
    if isinstance(cores, bool) or not isinstance(cores, int) or not 1 <= cores <= MAX_MIN_CORES:
        raise InvalidQueryError("min_cpu_cores is a whole number of at least 1")
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise InvalidQueryError("limit is a whole number of at least 1")
    if not isinstance(query.agent_type, str) or not _AGENT_TYPE.fullmatch(query.agent_type):
        raise InvalidQueryError(f"agent_type matches {AGENT_TYPE_PATTERN}")
    if pool_name is not None and (
        not isinstance(pool_name, str) or not 1 <= len(pool_name) <= MAX_POOL_NAME or NOT_TEXT.search(pool_name)
    ):
        raise InvalidQueryError("pool_name is text of 1 to 128 characters, none of them a control character")
    if query.gpu_type is not None and not isinstance(query.gpu_type, GpuType):
        raise InvalidQueryError("gpu_type is nvidia, amd, intel or none")
