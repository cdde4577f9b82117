"""A full disk: Redis's file meets a limit on its size, Postgres's tables a system that has no room for them."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from app.record import migrate
from tests.faults.conftest import Build, Row
from tests.faults.fleet import agent_ids
from tests.servers import start_postgres, start_valkey

INDEX_ONLY = frozenset({"index"})


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
    house.until(lambda: house.fleet.accepted > before + 20, what="heartbeats that are taken")
    house.check(heal=False)
    row.require_answers()
    row.saw(f"MISCONF: {house.fleet.refused[503]} heartbeats answered 503, lookups went on, resumed by itself")


@pytest.mark.parametrize("binaries", ["system", "wheel"])
def test_row_28_postgres_cannot_grow(build: Build, row: Row, servers: ExitStack, binaries: str) -> None:
    """No table of Postgres can grow (53100: the calls that would let it get ENOSPC) while new agents come."""
    postgres = servers.enter_context(
        start_postgres(config={"log_line_prefix": "%e "}, from_wheel=binaries == "wheel", fillable=True)
    )
    asyncio.run(migrate(postgres.url))
    house = build(postgres=postgres)
    postgres.fill_disk()
    newcomers = house.another_fleet(agent_ids(40, first=1000))
    newcomers.report()
    house.until_logged("A dependency is away", by=house.by_name["recorder"])
    # They are in the index all the same, and so is everything that comes later.
    house.until(lambda: house.found() == {*house.fleet.ids, *newcomers.ids}, what="the newcomers in a search")
    newcomers.report()
    [(recorded,)] = house.sql("SELECT count(*) FROM agent_registry")
    assert recorded < 8 + len(newcomers.ids)
    assert "53100 ERROR:  could not extend file" in (postgres.directory / "server.log").read_text()
    postgres.empty_disk()
    settled_s = house.check(heal=False)
    row.require_answers(sources=INDEX_ONLY)
    assert house.counted("recorder", "headroom_loop_failures_total", loop="recorder") > 0
    row.saw(f"53100: recorder paused, index went on; recorded {settled_s:.1f} s after there was room")
