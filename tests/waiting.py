"""Waiting for what a real process does in its own time, instead of sleeping."""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

import anyio

T = TypeVar("T")

PATIENCE_S = 60.0
"""The limit of a wait for what normally happens: only what hangs meets it, on a slow machine too.

Half of what pytest gives a whole test.
"""


def wait_until(
    predicate: Callable[[], T],
    *,
    timeout_s: float = PATIENCE_S,
    interval_s: float = 0.01,
    what: str = "a condition",
) -> T:
    """Returns the first truthy answer of `predicate`; raises AssertionError when none comes in time."""
    deadline = time.monotonic() + timeout_s
    while not (answer := predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s} s in vain for {what}; last answer: {answer!r}")
        time.sleep(interval_s)
    return answer


@overload
async def wait_until_async(
    predicate: Callable[[], Awaitable[T]],
    *,
    timeout_s: float = PATIENCE_S,
    interval_s: float = 0.01,
    what: str = "",
) -> T: ...


@overload
async def wait_until_async(
    predicate: Callable[[], T], *, timeout_s: float = PATIENCE_S, interval_s: float = 0.01, what: str = ""
) -> T: ...


async def wait_until_async(
    predicate: Callable[[], Any],
    *,
    timeout_s: float = PATIENCE_S,
    interval_s: float = 0.01,
    what: str = "a condition",
) -> Any:
    """`wait_until` for a running event loop; `predicate` may be a coroutine function."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = predicate()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s} s in vain for {what}; last answer: {answer!r}")
        await anyio.sleep(interval_s)
