"""Fills the index with a fleet the way a rebuild does: the same script, in batches, from a few processes."""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Final

from app.index.opening import open_index
from app.models.identity import StreamId
from tests.bench.fleets import Fleet
from tests.bench.programs import settings_for

PROCESSES: Final = 2

_PART: Final = 10_000
_BATCH: Final = 1_000
_MARKER: Final = "bench"
_SPREAD_MS: Final = 30_000
_PR_SET_PDEATHSIG: Final = 1


def fill(
    redis_url: str, fleet: Fleet, *, pool: ProcessPoolExecutor, progress: Callable[[int], None] = lambda _: None
) -> None:
    """Puts the whole fleet into an empty Redis and opens an epoch, so that lookups trust it.

    Args:
        redis_url: of an empty server.
        fleet: with the figures of its heartbeat 0.
        pool: where the work is done.
        progress: called with the number of agents put in since the last call.
    """
    asyncio.run(_begin(redis_url))
    received_ms = int(time.time() * 1000) - _SPREAD_MS
    parts = [(first, min(first + _PART, fleet.size)) for first in range(0, fleet.size, _PART)]
    futures = {pool.submit(fill_part, redis_url, fleet, *part, received_ms): part for part in parts}
    for future in as_completed(futures):
        future.result()
        first, end = futures[future]
        progress(end - first)
    if not asyncio.run(_open(redis_url)):
        raise RuntimeError("Redis lost its data while it was filled")


def filling_pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        PROCESSES, mp_context=multiprocessing.get_context("spawn"), initializer=end_with_parent
    )


def end_with_parent() -> None:
    """Without it the pool's processes would wait for work for ever once their parent was killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def fill_part(redis_url: str, fleet: Fleet, first: int, end: int, received_ms: int) -> None:
    asyncio.run(_fill_part(redis_url, fleet, range(first, end), received_ms))


async def _fill_part(redis_url: str, fleet: Fleet, numbers: Iterable[int], received_ms: int) -> None:
    index = open_index(settings_for(redis_url, "sqlite://"), purpose="fill")
    batch = []
    for number in numbers:
        batch.append(fleet.recorded(number, StreamId(received_ms - number % _SPREAD_MS)))
        if len(batch) == _BATCH:
            await index.upkeep.restore(batch)
            batch = []
    await index.upkeep.restore(batch)
    await index.close()


async def _begin(redis_url: str) -> None:
    index = open_index(settings_for(redis_url, "sqlite://"), purpose="fill")
    await index.upkeep.begin_rebuild(_MARKER, None)
    await index.close()


async def _open(redis_url: str) -> bool:
    index = open_index(settings_for(redis_url, "sqlite://"), purpose="fill")
    opened = await index.upkeep.open_epoch(_MARKER)
    await index.close()
    return opened
