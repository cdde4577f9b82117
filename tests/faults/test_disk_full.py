"""A full disk, made of a limit on the size of the server's files: the writes that fail are real."""

from __future__ import annotations

from contextlib import ExitStack

from tests.faults.conftest import Build, OwnPostgres, Row
from tests.faults.fleet import agent_ids
from tests.servers import PostgresServer, start_valkey

INDEX_ONLY = frozenset({"index"})
_FILL = """
    ALTER TABLE agent_registry ALTER hostname SET STORAGE PLAIN;
    CREATE TEMP TABLE filler AS SELECT * FROM agent_registry LIMIT 1;
    ALTER TABLE filler ALTER hostname SET STORAGE PLAIN;
    UPDATE filler SET hostname = repeat('x', 7400), forgotten_at = now();
    INSERT INTO agent_registry
        SELECT tombstone.*
        FROM filler, generate_series(1, 2300) AS page,
            jsonb_populate_record(filler, jsonb_build_object('agent_id', md5(page::text)::uuid)) AS tombstone
"""
"""One tombstone fills a page of the registry, and all of them more than a file of Postgres's write-ahead log: the
limit that stops the one leaves the other alone."""

_REFUSE = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'disk_full', MESSAGE = 'could not extend file'; END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON agent_registry FOR EACH STATEMENT EXECUTE FUNCTION refuse()
"""


def test_row_28_append_only_file_cannot_grow(build: Build, row: Row, servers: ExitStack) -> None:
    """Redis's append-only file cannot grow (MISCONF)."""
    valkey = servers.enter_context(start_valkey(appendonly=True, config=["appendfsync everysec"]))
    house = build(valkey=valkey)
    house.fleet.start()
    [log] = valkey.directory.glob("appendonlydir/*.incr.aof")
    valkey.limit_files(log.stat().st_size + 4096)
    refusal = house.next_refusal()
    assert (refusal.status, refusal.body["code"]) == (503, "index_unavailable")
    house.until_logged("A dependency is away")
    before = house.fleet.accepted
    valkey.limit_files(None)
    house.until(lambda: house.fleet.accepted > before + 20, what="heartbeats that are taken", timeout_s=60)
    house.check(heal=False)
    row.require_answers()
    row.saw(f"MISCONF: {house.fleet.refused[503]} heartbeats answered 503, lookups went on, resumed by itself")


def test_row_28_postgres_cannot_grow(build: Build, row: Row, own_postgres: OwnPostgres) -> None:
    """Postgres cannot extend the registry (53100) while new agents come."""
    postgres = own_postgres()
    house = build(postgres=postgres)
    fill_disk(postgres)
    newcomers = house.another_fleet(agent_ids(40, first=1000))
    newcomers.report()
    house.until_logged("A dependency is away", by=house.by_name["recorder"])
    # They are in the index all the same, and so is everything that comes later.
    house.until(lambda: house.found() == {*house.fleet.ids, *newcomers.ids}, what="the newcomers in a search")
    newcomers.report()
    [(recorded,)] = house.sql("SELECT count(*) FROM agent_registry WHERE forgotten_at IS NULL")
    assert recorded < 8 + len(newcomers.ids)
    make_room(postgres)
    settled_s = house.check(heal=False)
    row.require_answers(sources=INDEX_ONLY)
    assert house.counted("recorder", "headroom_loop_failures_total", loop="recorder") > 0
    row.saw(f"53100: recorder paused, index went on; recorded {settled_s:.1f} s after there was room")


def fill_disk(postgres: PostgresServer) -> None:
    if not says_disk_full(postgres):
        postgres.sql(_REFUSE)
        return
    postgres.sql(_FILL)
    # Half a page: the write that does not fit is cut short, as at the end of a disk.
    postgres.limit_files(int(postgres.sql("SELECT pg_relation_size('agent_registry')")) + 4096)


def make_room(postgres: PostgresServer) -> None:
    if says_disk_full(postgres):
        postgres.limit_files(None)
    else:
        postgres.sql("DROP TRIGGER refuse ON agent_registry")


def says_disk_full(postgres: PostgresServer) -> bool:
    """From version 16 on Postgres names such a limit an internal error; there the error itself is made."""
    return int(postgres.sql("SHOW server_version_num")) < 160_000
