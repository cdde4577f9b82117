"""The record while its database is away, hangs, is full, or is shared with others who hold its locks."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import pytest
from sqlalchemy import Connection, delete, event, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import RecordUnavailableError
from app.models.agent import AgentFilter
from app.models.capacity import CapacityQuery
from app.models.log import LogEntry
from app.record import Record, migrate, open_record
from app.record.tables import metadata
from app.record.writer import Batch
from app.settings import Settings
from tests.indexing import agent_id, heartbeat
from tests.integration.conftest import OpenRecord
from tests.logs import beat
from tests.servers import PostgresServer, start_postgres, wait_until_async

TIMEOUT_S = 1.0


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    """A server to break; each test leaves it running."""
    with start_postgres() as server:
        asyncio.run(migrate(server.url))
        yield server


@pytest.fixture
async def open_own(own_postgres: PostgresServer) -> AsyncIterator[OpenRecord]:
    """Opens records on that server and closes them, whatever becomes of the test."""
    opened: list[Record] = []

    def open_it(**settings: object) -> Record:
        wanted = {"database_url": own_postgres.url, "database_timeout_s": TIMEOUT_S, **settings}
        opened.append(open_record(Settings.model_validate(wanted)))
        return opened[-1]

    yield open_it
    for record in opened:
        await record.close()


@pytest.fixture
async def broken(open_own: OpenRecord) -> Record:
    """An empty record on that server."""
    record = open_own()
    async with record.database.writing() as connection:
        for table in metadata.sorted_tables:
            await connection.execute(delete(table))
    return record


async def every_call_says_away(record: Record) -> None:
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: record.capacity.find(CapacityQuery(), seen_since_ms=0),
        lambda: record.capacity.get(agent_id(1), seen_since_ms=0),
        record.capacity.newest_heartbeat,
        lambda: record.agents.list_agents(AgentFilter()),
        lambda: record.agents.agent(agent_id(1)),
        lambda: record.agents.history(agent_id(1), limit=1),
        lambda: record.agents.forget(agent_id(1), position=None),
        record.agents.ping,
        lambda: record.writer.write([beat(0, heartbeat(1))]),
        record.writer.thin,
        record.reader.greatest_position,
        lambda: anext(aiter(record.reader.states(page_size=1))),
    ]
    for call in calls:
        with pytest.raises(RecordUnavailableError):
            await call()


async def test_every_call_says_that_the_database_is_away_and_works_again_after(
    own_postgres: PostgresServer, broken: Record
) -> None:
    await broken.writer.write([beat(0, heartbeat(1))])
    own_postgres.kill()
    try:
        await every_call_says_away(broken)
    finally:
        own_postgres.start()
    assert (await broken.writer.write([beat(0, heartbeat(1)), beat(30, heartbeat(1))])).applied == 1
    assert len((await broken.agents.list_agents(AgentFilter())).agents) == 1


async def test_a_restart_costs_no_call(own_postgres: PostgresServer, broken: Record) -> None:
    """The pool's connections died; each is replaced before it is used."""
    await asyncio.gather(*(broken.agents.ping() for _ in range(3)))
    own_postgres.restart()
    await broken.writer.write([beat(0, heartbeat(1))])
    await asyncio.gather(*(broken.agents.ping() for _ in range(5)))


async def test_a_server_that_hangs_is_away_while_it_hangs(own_postgres: PostgresServer, broken: Record) -> None:
    await broken.agents.ping()
    own_postgres.pause()
    try:
        for call in (broken.agents.ping(), broken.writer.write([beat(0, heartbeat(1))])):
            # Without the limit of the settings it is the driver's own, a minute.
            async with asyncio.timeout(30):
                with pytest.raises(RecordUnavailableError):
                    await call
    finally:
        own_postgres.resume()
    assert (await broken.writer.write([beat(0, heartbeat(1))])).applied == 1


async def test_a_lock_that_somebody_keeps_is_not_waited_for_to_its_end(broken: Record) -> None:
    await broken.writer.write([beat(0, heartbeat(1))])
    async with broken.database.writing() as connection:
        await connection.execute(text("LOCK agent_registry IN ACCESS EXCLUSIVE MODE"))
        with pytest.raises(RecordUnavailableError):
            await broken.writer.write([beat(30, heartbeat(1))])
    assert (await broken.writer.write([beat(30, heartbeat(1))])).applied == 1


async def test_a_pool_that_is_used_up_is_waited_for_no_longer_than_the_timeout(open_own: OpenRecord) -> None:
    record = open_own(database_pool_size=1)
    async with record.database._engine.connect():
        with pytest.raises(RecordUnavailableError):
            await record.agents.ping()
    await record.agents.ping()


async def test_too_many_connections_for_the_server(own_postgres: PostgresServer, open_own: OpenRecord) -> None:
    database = own_postgres.create_database()
    own_postgres.sql(f"ALTER DATABASE {database} CONNECTION LIMIT 0", "CREATE ROLE planner LOGIN")
    record = open_own(database_url=own_postgres.database_url(database).replace("postgres@", "planner@"))
    with pytest.raises(RecordUnavailableError):
        await record.agents.ping()


async def test_crossing_writers_retry_a_deadlock(
    open_own: OpenRecord, broken: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program locks two agents in the opposite order; the recorder gives way and tries again."""
    await broken.writer.write([beat(0, heartbeat(number), n=number) for number in (1, 2)])
    other, patient = open_own(database_timeout_s=60), open_own(database_timeout_s=60)
    tries = 0
    write = patient.writer._write

    async def counted(connection: AsyncConnection, entries: Sequence[LogEntry]) -> Batch:
        nonlocal tries
        tries += 1
        return await write(connection, entries)

    async def somebody_waits() -> bool:
        waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        async with broken.database.reading() as connection:
            return bool(await connection.scalar(waiting))

    monkeypatch.setattr(patient.writer, "_write", counted)
    touch = text("UPDATE agent_registry SET hostname = hostname WHERE agent_id = CAST(:agent_id AS uuid)")
    async with other.database.colliding() as connection:
        # Whoever waits for as long as its deadlock_timeout looks for a deadlock first, and gives way.
        await connection.execute(text("SET LOCAL deadlock_timeout = '30s'"))
        await connection.execute(touch, {"agent_id": agent_id(2)})
        writing = asyncio.create_task(
            patient.writer.write([beat(30, heartbeat(number), n=number) for number in (1, 2)])
        )
        await wait_until_async(somebody_waits, what="the writer to wait for a lock")
        await connection.execute(touch, {"agent_id": agent_id(1)})
    assert (await writing).applied == 2
    assert tries == 2


async def test_a_cancelled_call_gives_its_connection_back(broken: Record) -> None:
    async def slow() -> None:
        async with broken.database.reading() as connection:
            await connection.execute(text("SELECT pg_sleep(30)"))

    for _ in range(7):  # more than the pool holds
        task = asyncio.create_task(slow())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await asyncio.gather(*(broken.agents.ping() for _ in range(5)))


async def test_a_write_that_is_cancelled_leaves_nothing_behind(
    broken: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = asyncio.Event()

    async def hang(*_: object, **__: object) -> None:
        reached.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patched:
        patched.setattr(broken.writer, "_write_positions", hang)
        task = asyncio.create_task(broken.writer.write([beat(0, heartbeat(1))]))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (await broken.agents.list_agents(AgentFilter())).agents == []
    assert (await broken.writer.write([beat(0, heartbeat(1))])).applied == 1


@pytest.fixture
async def sqlite_record(sqlite_record_url: str) -> AsyncIterator[Record]:
    record = open_record(Settings(database_url=sqlite_record_url, database_timeout_s=0.3))
    yield record
    await record.close()


async def test_a_sqlite_file_that_another_program_keeps_locked(
    sqlite_record: Record, sqlite_record_url: str
) -> None:
    path = sqlite_record_url.removeprefix("sqlite+aiosqlite:///")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(RecordUnavailableError):
        await sqlite_record.writer.write([beat(0, heartbeat(1))])
    await sqlite_record.agents.ping()
    other.execute("COMMIT")
    other.close()
    assert (await sqlite_record.writer.write([beat(0, heartbeat(1))])).applied == 1


async def test_readers_do_not_wait_for_a_writer_of_the_sqlite_file(sqlite_record: Record) -> None:
    await sqlite_record.writer.write([beat(0, heartbeat(1))])
    async with sqlite_record.database.writing() as connection:
        await connection.execute(text("DELETE FROM agent_registry"))
        assert len((await sqlite_record.agents.list_agents(AgentFilter())).agents) == 1


async def test_a_full_disk_under_sqlite(sqlite_record: Record) -> None:
    async with sqlite_record.database.writing() as connection:
        pages = await connection.scalar(text("PRAGMA page_count"))
    many = [beat(0, heartbeat(number, hostname="x" * 200), n=number) for number in range(2000)]

    @event.listens_for(sqlite_record.database._writer.sync_engine, "begin")
    def limit(connection: Connection) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 5}")

    with pytest.raises(RecordUnavailableError):
        await sqlite_record.writer.write(many)
    assert (await sqlite_record.agents.list_agents(AgentFilter())).agents == []


async def test_a_sqlite_directory_that_is_gone(sqlite_record_url: str, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    path = shutil.copy(sqlite_record_url.removeprefix("sqlite+aiosqlite:///"), gone / "record.db")
    record = open_record(Settings(database_url=f"sqlite:///{path}"))
    shutil.rmtree(gone)
    await every_call_says_away(record)
    await record.close()
