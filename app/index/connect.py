"""Builds every Redis client, and turns Redis's ways of being away into domain errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import redis.asyncio as aredis
from redis import exceptions as redis_errors
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.errors import IndexUnavailableError
from app.index.packing import packing

if TYPE_CHECKING:
    from app.settings import Settings

# Server answers that mean "not now"; anything else in a ResponseError is a fault of ours and stays loud.
_NOT_NOW: Final = (
    "BUSY ",
    "CLUSTERDOWN",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "NOREPLICAS",
    "OOM ",
    "READONLY",
    "TRYAGAIN",
    "max number of clients",
)


@contextmanager
def unavailable() -> Iterator[None]:
    """Raises IndexUnavailableError for everything that means that Redis cannot serve this call now."""
    try:
        yield
    except (redis_errors.ConnectionError, redis_errors.TimeoutError, OSError) as error:
        raise IndexUnavailableError from error
    except redis_errors.ResponseError as error:
        if is_not_now(error):
            raise IndexUnavailableError from error
        raise


def is_not_now(error: redis_errors.ResponseError) -> bool:
    typed = (
        redis_errors.ReadOnlyError,
        redis_errors.OutOfMemoryError,
        redis_errors.MasterDownError,
        redis_errors.TryAgainError,
        redis_errors.ClusterDownError,
    )
    return isinstance(error, typed) or str(error).startswith(_NOT_NOW)


def is_missing_group(error: redis_errors.ResponseError) -> bool:
    """True for what a consumer sees after a flush: no group, or its blocked read cut short."""
    return str(error).startswith(("NOGROUP", "UNBLOCKED"))


def connect(settings: Settings, *, purpose: str) -> aredis.Redis:
    """A client for the request path and for scripts: short timeouts, no blind retries.

    With a lost reply a retried command runs twice, so whoever may repeat a call says so itself.
    """
    return _client(settings, purpose=purpose, timeout_s=settings.redis_timeout_s)


def connect_reader(settings: Settings, *, purpose: str) -> aredis.Redis:
    """A client for blocking reads: its socket timeout lies above the block time (Settings checks that)."""
    return _client(settings, purpose=purpose, timeout_s=settings.stream_timeout_s)


def _client(settings: Settings, *, purpose: str, timeout_s: float) -> aredis.Redis:
    if settings.redis_url is None:
        raise ValueError("no Redis URL; an entry point must set one (the embedded server's, for example)")
    pool = aredis.BlockingConnectionPool.from_url(
        settings.redis_url,
        max_connections=settings.redis_pool_size,
        timeout=settings.redis_timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=settings.redis_timeout_s,
        retry=Retry(NoBackoff(), 0),
        client_name=f"headroom-{purpose}",
        decode_responses=False,
    )
    pool.connection_class = type("Connection", (_LeavesDemoted, pool.connection_class), {})
    pool.connection_class = packing(pool.connection_class)
    return aredis.Redis.from_pool(pool)


class _LeavesDemoted:
    """A connection that closes when its server takes no writes any more.

    After a failover behind one address the old connections still lead to the demoted primary, which would answer
    READONLY for as long as they live.
    """

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*arguments, **options)  # type: ignore[misc]  # a connection's
        except redis_errors.ReadOnlyError:
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]  # a connection's
            raise


async def command(client: aredis.Redis, *parts: str) -> Any:
    """A command that redis-py has no method for."""
    return await client.execute_command(*parts)  # type: ignore[no-untyped-call]  # redis-py leaves it untyped


async def send(pipeline: aredis.client.Pipeline) -> list[Any]:
    """Runs a pipeline and raises its first error in the server's words, which redis-py would wrap in its own."""
    replies: list[Any] = await pipeline.execute(raise_on_error=False)
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies


async def send_reads(pipeline: aredis.client.Pipeline) -> list[Any]:
    """As `send`, with None for a key of another type than expected: nobody but we should have written it."""
    replies: list[Any] = await pipeline.execute(raise_on_error=False)
    for at, reply in enumerate(replies):
        if isinstance(reply, redis_errors.ResponseError) and str(reply).startswith("WRONGTYPE"):
            replies[at] = None
        elif isinstance(reply, Exception):
            raise reply
    return replies


async def server_run_id(client: aredis.Redis) -> str:
    """Identifies this run of the server: another one means that what it holds may be older than expected."""
    info: dict[str, Any] = await client.info("server")
    return str(info["run_id"])


def on_connect(client: aredis.Redis, notify: Callable[[], None]) -> None:
    """Calls `notify` whenever a connection of the client has been made anew."""

    async def connected(connection: aredis.Connection) -> None:
        await connection.on_connect()
        notify()

    client.connection_pool.connection_kwargs["redis_connect_func"] = connected
