"""The sides that ask Postgres: one connection, prepared statements, tables of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import Any, Final

import asyncpg
import msgspec
from sqlalchemy import Column, DateTime, MetaData, String, Table, Uuid, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from tests.bench.fleets import AGENT_TYPE, Fleet
from tests.bench.questions import Answer, Promise, Question
from tests.bench.sides import OFFLINE_AFTER_S, Timed
from tests.bench.tables import GIST, JSON, PeerTable, metrics_document, plain_url

SERVER: Final = {
    "shared_buffers": "1GB",
    "effective_cache_size": "4GB",
    "work_mem": "64MB",
    "maintenance_work_mem": "512MB",
    "random_page_cost": "1.1",
    "max_wal_size": "8GB",
    "synchronous_commit": "off",
    "jit": "off",
    "autovacuum_naptime": "10s",
}
"""Settings that suit the peers: everything in memory, no waiting for a disk."""

_COPIED: Final = 20_000

_figures_decoder: Final = msgspec.json.Decoder(dict[str, Any])


class Postgres:
    """The benchmark's one connection, on an event loop of its own; blocking from outside."""

    def __init__(self, url: str) -> None:
        import uvloop  # the faster loop, as in production; asyncpg is on it as fast as psycopg's C code

        self.url = url
        self._loop = uvloop.new_event_loop()
        self.connection: asyncpg.Connection[Any] = self.run(asyncpg.connect(plain_url(url)))

    def run(self, awaitable: Awaitable[Any]) -> Any:
        async def awaited() -> Any:
            return await awaitable

        return self._loop.run_until_complete(awaited())

    def has_btree_gist(self) -> bool:
        query = "SELECT count(*) FROM pg_available_extensions WHERE name = 'btree_gist'"
        return bool(self.run(self.connection.fetchval(query)))

    def version(self) -> str:
        return str(self.run(self.connection.fetchval("SHOW server_version"))).split(" ")[0]

    def load(self, fleet: Fleet, tables: Sequence[PeerTable]) -> None:
        """Makes the tables anew with the fleet in them, indexed, vacuumed and analysed."""
        self.run(self._load(fleet, tables))

    def close(self) -> None:
        self.run(self.connection.close())
        self._loop.close()

    async def _load(self, fleet: Fleet, tables: Sequence[PeerTable]) -> None:
        connection = self.connection
        if GIST in tables:
            await connection.execute("CREATE EXTENSION IF NOT EXISTS btree_gist")
        for table in tables:
            await connection.execute(f"DROP TABLE IF EXISTS {table.name}")
            await connection.execute(f"CREATE TABLE {table.name} ({table.columns})")
        at = datetime.now(UTC)
        for first in range(0, fleet.size, _COPIED):
            numbers = range(first, min(first + _COPIED, fleet.size))
            for table in tables:
                rows = _json_rows(fleet, numbers, at) if table is JSON else _figure_rows(fleet, numbers, at)
                await connection.copy_records_to_table(table.name, records=rows)
        for table in tables:
            for index in table.indexes:
                await connection.execute(index)
            await connection.execute(f"VACUUM (ANALYZE) {table.name}")


def _figure_rows(fleet: Fleet, numbers: range, at: datetime) -> Iterator[tuple[Any, ...]]:
    for number in numbers:
        yield (fleet.agent_id(number), AGENT_TYPE, fleet.pool(number), "online", at, *fleet.figures(number, 0))


def _json_rows(fleet: Fleet, numbers: range, at: datetime) -> Iterator[tuple[Any, ...]]:
    for number in numbers:
        document = metrics_document(fleet, number, 0)
        yield (fleet.agent_id(number), AGENT_TYPE, fleet.pool(number), "online", at, document)


class SelectOne:
    """Postgres's own floor: `SELECT 1`, prepared."""

    name = "SELECT 1"
    promise: Promise = "exact"

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres
        self._statement: asyncpg.prepared_stmt.PreparedStatement[Any] = postgres.run(
            postgres.connection.prepare("SELECT 1")
        )

    def ask(self, question: Question, turns: Sequence[int]) -> list[Timed]:
        del question
        timed: list[Timed] = self._postgres.run(_timed(lambda _: self._statement.fetch(), turns))
        return timed

    def read(self, question: Question, raw: Any) -> None:
        del question, raw

    def close(self) -> None:
        """The connection is shared."""


class Indexed:
    """Prepared statements on one of the tables."""

    promise: Promise = "ties"

    def __init__(self, postgres: Postgres, table: PeerTable, asked_ids: Sequence[str]) -> None:
        self.name = table.side
        self.table = table
        self._postgres = postgres
        self._asked_ids = asked_ids
        self._since = datetime.now(UTC) - timedelta(seconds=OFFLINE_AFTER_S)
        prepare = postgres.connection.prepare
        self._top = postgres.run(prepare(table.top()))
        self._count = postgres.run(prepare(table.count()))
        self._one = postgres.run(prepare(table.one()))

    def ask(self, question: Question, turns: Sequence[int]) -> list[Timed]:
        timed: list[Timed] = self._postgres.run(_timed(self._call(question), turns))
        return timed

    def read(self, question: Question, raw: Any) -> Answer:
        if question.kind == "count":
            return int(raw)
        return tuple(self._row(record, with_pool=question.kind != "one") for record in raw)

    def close(self) -> None:
        """The connection is shared."""

    def _call(self, question: Question) -> Callable[[int], Awaitable[Any]]:
        fits = (self._since, question.min_vram_gb, question.min_cores)
        if question.kind == "one":
            return lambda turn: self._one.fetch(self._asked_ids[turn % len(self._asked_ids)])
        if question.kind == "count":
            return lambda _: self._count.fetchval(*fits)
        return lambda _: self._top.fetch(*fits, question.limit)

    def _row(self, record: Any, *, with_pool: bool) -> tuple[str, str, float, int, float]:
        pool = record["pool_name"] if with_pool else ""
        if self.table is JSON:
            metrics = _figures_decoder.decode(record["resource_metrics"])
            figures = metrics["gpu_vram_available_gb"], metrics["cpu_cores_available"], metrics["cpu_load_1min"]
        else:
            figures = (
                record["gpu_vram_available_gb"],
                record["cpu_cores_available"],
                record["cpu_load_1min"],
            )
        return (str(record["agent_id"]), pool, *figures)


class LoadAll:
    """Every online row by way of SQLAlchemy, filtered and sorted in Python."""

    name = "load all, filter in Python"
    promise: Promise = "exact"

    _AGENTS: Final = Table(
        JSON.name,
        MetaData(),
        Column("agent_id", Uuid(as_uuid=False)),
        Column("agent_type", String),
        Column("pool_name", String),
        Column("status", String),
        Column("last_heartbeat_at", DateTime(timezone=True)),
        Column("resource_metrics", JSONB),
    )

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres
        self._engine = create_async_engine(postgres.url, poolclass=NullPool)
        self._connection: AsyncConnection = postgres.run(self._engine.connect())

    def ask(self, question: Question, turns: Sequence[int]) -> list[Timed]:
        timed: list[Timed] = self._postgres.run(_timed(lambda _: self._load(question), turns))
        return timed

    def read(self, question: Question, raw: Any) -> Answer:
        if question.kind == "count":
            return len(raw)
        return tuple(
            (
                row.agent_id,
                row.pool_name,
                row.resource_metrics["gpu_vram_available_gb"],
                row.resource_metrics["cpu_cores_available"],
                row.resource_metrics["cpu_load_1min"],
            )
            for row in raw
        )

    def close(self) -> None:
        self._postgres.run(self._connection.close())
        self._postgres.run(self._engine.dispose())

    async def _load(self, question: Question) -> list[Any]:
        agents = self._AGENTS.c
        query = select(self._AGENTS).where(agents.agent_type == AGENT_TYPE, agents.status == "online")
        since = datetime.now(UTC) - timedelta(seconds=OFFLINE_AFTER_S)
        found = [
            row
            for row in (await self._connection.execute(query)).all()
            if row.last_heartbeat_at > since
            and row.resource_metrics["gpu_vram_available_gb"] >= question.min_vram_gb
            and row.resource_metrics["cpu_cores_available"] >= question.min_cores
        ]
        # Left open, the transaction would keep autovacuum from every table.
        await self._connection.rollback()
        found.sort(key=lambda row: (row.resource_metrics["gpu_vram_available_gb"], row.agent_id), reverse=True)
        return found if question.kind == "count" else found[: question.limit]


async def _timed(call: Callable[[int], Awaitable[Any]], turns: Sequence[int]) -> list[Timed]:
    results = []
    for turn in turns:
        started = perf_counter()
        raw = await call(turn)
        returned = perf_counter()
        results.append(Timed(returned - started, returned, raw))
    # Lets the loop see to what the driver has put off, outside the times.
    await asyncio.sleep(0)
    return results
