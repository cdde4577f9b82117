"""What a planner imports to ask which machines have room: `CapacityClient`, and the same for asyncio.

Example:
    >>> from app.client import CapacityClient
    >>> client = CapacityClient("redis://127.0.0.1:6390", fallback="http://127.0.0.1:8000")
    >>> for agent in client.find(min_gpu_vram_gb=12, min_cpu_cores=8, limit=3):
    ...     print(agent.agent_id, agent.gpu_vram_available_gb, agent.cpu_cores_available)
    00000000-0000-4000-8000-000000000004 80.0 64
    00000000-0000-4000-8000-000000000003 24.0 12
    00000000-0000-4000-8000-000000000002 16.0 8
    >>> client.count(min_gpu_vram_gb=12)
    4
    >>> client.get("00000000-0000-4000-8000-000000000003").gpu_vram_available_gb
    24.0
    >>> client.close()

The URL chooses the way. `redis://`, `rediss://` and `unix://` ask the index itself, in one round trip; `http://`
and `https://` ask the API, which answers from the durable record while the index is away. One can stand in for
the other (`fallback`). Both give the same answers and raise the same errors, all of them `HeadroomError`s with
a stable `code` (docs/errors.md).

Importing this module loads neither redis nor httpx; the first client of a kind loads its own.
"""

from __future__ import annotations

from app.client.asynchronous import AsyncCapacityClient
from app.client.blocking import CapacityClient
from app.errors import (
    AgentNotFoundError,
    CapacityUnknownError,
    HeadroomError,
    IndexRebuildingError,
    IndexUnavailableError,
    InvalidAgentIdError,
    InvalidQueryError,
    RecordUnavailableError,
    UnavailableError,
    UnexpectedAnswerError,
)
from app.models.capacity import (
    AgentCapacity,
    AgentStatus,
    AvailableCapacity,
    CapacityPage,
    CapacityQuery,
    Cursor,
    GpuType,
)
from app.models.change import Change, ChangeKind
from app.models.insight import Explanation, Fit, Hidden, Miss, PoolTotals

__all__ = [
    "AgentCapacity",
    "AgentNotFoundError",
    "AgentStatus",
    "AsyncCapacityClient",
    "AvailableCapacity",
    "CapacityClient",
    "CapacityPage",
    "CapacityQuery",
    "CapacityUnknownError",
    "Change",
    "ChangeKind",
    "Cursor",
    "Explanation",
    "Fit",
    "GpuType",
    "HeadroomError",
    "Hidden",
    "IndexRebuildingError",
    "IndexUnavailableError",
    "InvalidAgentIdError",
    "InvalidQueryError",
    "Miss",
    "PoolTotals",
    "RecordUnavailableError",
    "UnavailableError",
    "UnexpectedAnswerError",
]
