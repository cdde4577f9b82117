"""Postgres restarts, hangs, refuses, fills up."""

from __future__ import annotations

import threading
import time

import psutil

from tests.faults.conftest import Build, OwnPostgres, Row
from tests.faults.fleet import Answer
from tests.faults.house import House
from tests.faults.sessions import Sessions
from tests.servers import PostgresServer
from tests.waiting import PATIENCE_S

INDEX_ONLY = frozenset({"index"})


def test_row_23_postgres_restarts(build: Build, row: Row, own_postgres: OwnPostgres) -> None:
    """Postgres is restarted twice while heartbeats come in, once in order and once by kill -9."""
    postgres = own_postgres()
    house = build(postgres=postgres)
    house.fleet.start()
    for end in (postgres.stop, postgres.kill):
        before = house.sql("SELECT max(last_ms) FROM agent_registry")
        end()
        postgres.start()
        house.until(lambda: house.sql("SELECT max(last_ms) FROM agent_registry") > before, what="the next batch")  # noqa: B023
    assert not house.fleet.refused
    settled_s = house.check(heal=False)
    row.require_answers(sources=INDEX_ONLY)
    row.saw(f"{house.fleet.accepted} heartbeats taken meanwhile, all recorded {settled_s:.1f} s after the last")


def test_row_24_backend_hangs(build: Build, row: Row, own_postgres: OwnPostgres) -> None:
    """The Postgres process that serves the recorder is stopped, between its batches and in the middle of one."""
    postgres = own_postgres()
    house = build(postgres=postgres)
    house.fleet.start()
    before = house.sql("SELECT max(last_ms) FROM agent_registry")
    for in_a_batch in (False, True):
        backend = backend_of_recorder(house, postgres, in_a_batch=in_a_batch)
        failures = failures_of_recorder(house)
        if not in_a_batch:
            house.until(
                lambda: house.sql("SELECT max(last_ms) FROM agent_registry") > before, what="another batch"
            )
        else:
            house.until(lambda: failures_of_recorder(house) > failures, what="the timeout")  # noqa: B023  called here
        backend.resume()
    assert not house.fleet.refused
    settled_s = house.check(heal=False)
    row.require_answers(sources=INDEX_ONLY)
    row.saw(
        f"the statement timed out and was tried again; all recorded {settled_s:.1f} s after the last heartbeat"
    )


def backend_of_recorder(house: House, postgres: PostgresServer, *, in_a_batch: bool) -> psutil.Process:
    """Stops the backend with the recorder's connection, while it is idle or while it holds locks."""
    state = "state = 'idle in transaction'" if in_a_batch else "state = 'idle'"
    wanted = f"""
        SELECT pid FROM pg_stat_activity
        WHERE application_name = 'headroom' AND query_start > now() - interval '2 s' AND {state} LIMIT 1
    """

    def stopped() -> psutil.Process | None:
        pid = postgres.sql(wanted)
        if not pid:
            return None
        backend = psutil.Process(int(pid))
        backend.suspend()
        if postgres.sql(wanted.replace("LIMIT 1", f"AND pid = {pid}")):
            return backend
        backend.resume()
        return None

    found = house.until(stopped, what="a backend of the recorder")
    assert found is not None
    return found


def test_row_25_deadlock(build: Build, row: Row, own_postgres: OwnPostgres) -> None:
    """Another session updates the same agents in the opposite order: a batch of the recorder loses once, another
    one until it gives up for a while.
    """
    postgres = own_postgres(deadlock_timeout="200ms", log_line_prefix="%e ")
    house = build(postgres=postgres, agents=6, database_timeout_s=10)
    recorder = house.by_name["recorder"]
    with Sessions(postgres) as others:
        rival, gate = others.open(), others.open()
        # It never looks for deadlocks itself, so the recorder is the one to lose.
        others.run(rival, "SET deadlock_timeout = '60s'")
        for losses in (1, TRIES):
            house.until_quiet()
            assert not failures_of_recorder(house)
            recorder.pause()
            house.fleet.report()
            # Not the first agent: that heartbeat is handed to the blocked reader alone.
            low, middle, high = house.fleet.ids[2:5]
            others.run(rival, f"BEGIN; {CROSS.format(high)}; SAVEPOINT before")
            others.run(gate, f"BEGIN; {CROSS.format(middle)}")
            recorder.resume()
            for lost in range(losses):
                house.until(lambda: waits_for(postgres, others.pid(gate)), what="the recorder at the gate")
                crossing = others.begin(rival, CROSS.format(low))
                house.until(lambda: is_blocked(postgres, others.pid(rival)), what="the rival to wait")
                before = logged(postgres, "40P01")
                # From here the recorder runs into the rival, which waits for it already.
                others.run(gate, "ROLLBACK")
                crossing.result(30)
                assert logged(postgres, "40P01") == before + 1
                if lost + 1 < losses:
                    others.run(gate, f"BEGIN; {CROSS.format(middle)}")
                    others.run(rival, "ROLLBACK TO before")
            if losses == TRIES:
                house.until_logged("A dependency is away", by=recorder)
            others.run(rival, "ROLLBACK")
    house.check(heal=False)
    row.require_answers(sources=INDEX_ONLY)
    assert logged(postgres, "40P01") == 1 + TRIES
    row.saw(f"40P01: tried again at once; after {TRIES} in a row the batch waited, then it was written")


TRIES = 5
"""So often a batch is tried before the recorder lets some time pass."""

CROSS = "UPDATE agent_registry SET hostname = hostname WHERE agent_id = '{}'"


def waits_for(postgres: PostgresServer, pid: int) -> bool:
    """Whether anybody does, for a lock."""
    return postgres.sql(f"SELECT count(*) FROM pg_stat_activity WHERE {pid} = ANY(pg_blocking_pids(pid))") != "0"


def is_blocked(postgres: PostgresServer, pid: int) -> bool:
    return postgres.sql(f"SELECT cardinality(pg_blocking_pids({pid}))") != "0"


def logged(postgres: PostgresServer, sqlstate: str) -> int:
    """How many errors of this kind Postgres has told anybody; its log says the state first."""
    lines = (postgres.directory / "server.log").read_text(errors="replace").splitlines()
    return sum(line.startswith((f"{sqlstate} ERROR", f"{sqlstate} FATAL")) for line in lines)


def failures_of_recorder(house: House) -> float:
    return house.counted("recorder", "headroom_loop_failures_total", loop="recorder")


def test_row_25_serialization(build: Build, row: Row, own_postgres: OwnPostgres) -> None:
    """Two recorders on a database whose transactions are serializable."""
    postgres = own_postgres(log_line_prefix="%e ")
    postgres.sql("ALTER DATABASE postgres SET default_transaction_isolation = 'serializable'")
    house = build(postgres=postgres, agents=6, record_batch=3)
    house.start("recorder", record_batch=3)
    house.fleet.start(every_s=0.002)
    house.until(lambda: logged(postgres, "40001") > 5, what="six transactions that lost")
    house.check(heal=False)
    row.require_answers(sources=INDEX_ONLY)
    # Both lock agents in the same order.
    assert logged(postgres, "40P01") == 0
    row.saw(
        f"40001: {logged(postgres, '40001')} transactions lost and were tried again; no deadlock between the two"
    )


def test_row_26_pool_exhausted(build: Build, row: Row, own_postgres: OwnPostgres) -> None:
    """A pool of one connection, and a table that is locked."""
    postgres = own_postgres()
    house = build(postgres=postgres, database_pool_size=1, database_timeout_s=0.5)
    house.fleet.start()
    answers: list[tuple[float, Answer]] = []

    def ask() -> None:
        started = time.monotonic()
        answer = house.get("/api/v1/agents")
        answers.append((time.monotonic() - started, answer))

    with Sessions(postgres) as others:
        others.run(others.open(), "BEGIN; LOCK agent_registry")
        callers = [threading.Thread(target=ask) for _ in range(6)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(PATIENCE_S)
    assert [answer.status for _, answer in answers] == [503] * 6
    assert all(int(answer.headers["retry-after"]) >= 1 for _, answer in answers)
    longest_s = max(took_s for took_s, _ in answers)
    house.until(lambda: house.get("/api/v1/agents").status == 200, what="the registry again")
    house.check(heal=False)
    row.require_answers(sources=INDEX_ONLY)
    row.saw(f"pool: 503 after at most {longest_s:.1f} s; lookups and heartbeats went on")


def test_row_26_server_out_of_connections(build: Build, row: Row, own_postgres: OwnPostgres) -> None:
    """Others hold every connection that Postgres has (53300)."""
    postgres = own_postgres(max_connections="12", superuser_reserved_connections="0", log_line_prefix="%e ")
    house = build(postgres=postgres, database_pool_size=1)
    house.fleet.start()
    with Sessions(postgres) as others:

        def all_taken() -> bool:
            # Whoever was cut off is kept out until others have its place, or it would be the first to take it.
            house.postgres.refusing = True
            house.postgres.cut()
            return others.take_all() == 12

        house.until(all_taken, what="twelve sessions of others")
        before, failures = logged(postgres, "53300"), failures_of_recorder(house)
        house.postgres.refusing = False
        answer = house.get("/api/v1/agents")
        assert (answer.status, answer.body["code"]) == (503, "record_unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        house.until(lambda: failures_of_recorder(house) > failures, what="the recorder's failure")
        house.until(lambda: logged(postgres, "53300") >= before + 2, what="two refusals of Postgres")
    house.until(lambda: house.get("/api/v1/agents").status == 200, what="the registry again")
    house.check(heal=False)
    row.require_answers(sources=INDEX_ONLY)
    row.saw("53300: 503 for the registry, lookups and heartbeats went on")
