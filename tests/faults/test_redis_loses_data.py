"""Redis comes back empty, older, or without its scripts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

import redis

from tests.faults.conftest import Build, Row
from tests.faults.house import House
from tests.servers import ValkeyServer, start_valkey


def answered_from_index_again(house: House, since: float) -> float:
    """Seconds from the fault until the first lookup that the index answered after the record had to."""
    after = [answer for answer in house.lookups.since(since) if answer.source == "record"]
    assert after, "no lookup was answered from the record"
    healed = next(one for one in house.lookups.since(after[-1].at) if one.source == "index")
    return healed.at - since


def test_row_05_flushall(build: Build, row: Row) -> None:
    """FLUSHALL while workers block on the stream and heartbeats come in."""
    house = build(agents=30)
    house.fleet.start()
    # A rebuild of thirty agents could be over between two questions of the planner.
    house.redis.reply_delay_s = 0.05
    flushed = time.monotonic()
    with house.valkey.client() as client:
        client.flushall()
    house.lookups.until(lambda answer: answer.source == "record")
    house.redis.reply_delay_s = 0.0
    house.until_logged("The index is rebuilt", times=2)
    house.lookups.until(lambda answer: answer.source == "index")
    house.check()
    row.require_answers()
    healed_s = answered_from_index_again(house, flushed)
    row.saw(f"lookups from the record, from the index again {healed_s:.1f} s later")


def test_row_08_redis_restarts_with_nothing(build: Build, row: Row) -> None:
    """Redis is killed and comes back with nothing on disk."""
    house = build(agents=30)
    house.fleet.start()
    killed = time.monotonic()
    house.valkey.kill()
    house.lookups.until(lambda answer: answer.source == "record")
    assert house.next_refusal().status == 503
    house.valkey.start()
    house.until_logged("The index is rebuilt", times=2)
    house.lookups.until(lambda answer: answer.source == "index")
    house.check()
    row.require_answers()
    row.saw(f"503 meanwhile, lookups from the index again after {answered_from_index_again(house, killed):.1f} s")


PAUSED: Final = ("ingest", "recorder", "reaper")


def test_row_09_redis_loses_the_tail_of_its_log(build: Build, row: Row, servers: ExitStack) -> None:
    """Redis with AOF everysec is killed, and the last 4,000 bytes of its file are cut off."""
    valkey = servers.enter_context(start_valkey(appendonly=True, config=["appendfsync everysec"]))
    house = build(valkey=valkey, agents=30)
    for _ in range(5):
        house.fleet.report()
    # What is cut is what neither group had to do with yet: the record must not make up for it. Nor may leases fill
    # it while Redis syncs.
    for name in PAUSED:
        house.by_name[name].pause()
    house.fleet.report()
    taken = {str(one.acknowledged[1]): one for one in house.fleet.reporters if one.acknowledged is not None}
    with valkey.client() as client:
        # While it syncs, Redis keeps back what it writes next, and a kill takes that too. It waits for its own
        # connection's writes only.
        client.set("written", 1)
        assert client.execute_command("WAITAOF", 1, 0, 0) == [1, 0]
    valkey.kill()
    there = cut_tail(valkey, 4_000)
    valkey.start()
    # Before anybody may trim the stream.
    with redis.Redis(port=valkey.port) as client:
        lost = {stream_id for stream_id in taken if not client.xrange("headroom:heartbeats", stream_id, stream_id)}
    assert lost == taken.keys() - there
    assert 0 < len(lost) < len(taken)
    for name in PAUSED:
        house.by_name[name].resume()
    house.until_logged("The index is rebuilt", times=2)
    house.until_quiet()
    # Those that were not in the tail are what their agents show, without any further heartbeat.
    assert house.applied([one for stream_id, one in taken.items() if stream_id not in lost])
    house.check()
    row.require_answers()
    row.saw(
        f"{len(lost)} of {6 * len(taken)} acknowledged heartbeats lost, none that the file still had, then healed"
    )


def cut_tail(valkey: ValkeyServer, size: int) -> set[str]:
    """Cuts off so many bytes, and returns the ids of the heartbeats that are whole in what is left."""
    [log] = valkey.directory.glob("appendonlydir/*.incr.aof")
    kept = log.stat().st_size - size
    # An XADD stands in the file with the id that it was given.
    there = {
        parts[2].decode()
        for end, together in transactions(log.read_bytes())
        for parts in together
        if end <= kept and parts[:2] == [b"XADD", b"headroom:heartbeats"]
    }
    with log.open("r+b") as file:
        file.truncate(kept)
    return there


def transactions(log: bytes) -> Iterator[tuple[int, list[list[bytes]]]]:
    """What an append-only file holds: commands that take effect together, and where they end."""
    together: list[list[bytes]] = []
    at = 0
    within = False
    while at < len(log):
        count, at = number_after(log, at)
        parts = []
        for _ in range(count):
            length, at = number_after(log, at)
            parts.append(log[at : at + length])
            at += length + 2
        within = parts[0] != b"EXEC" and (within or parts[0] == b"MULTI")
        together.append(parts)
        if not within:
            yield at, together
            together = []


def number_after(log: bytes, at: int) -> tuple[int, int]:
    """The number behind the `*` or `$` at this place, and where its line ends."""
    end = log.index(b"\r\n", at)
    return int(log[at + 1 : end]), end + 2


def test_row_14_scripts_lost(build: Build, row: Row) -> None:
    """SCRIPT FLUSH again and again while heartbeats come in."""
    house = build()
    house.fleet.start()
    flushes = 100
    with house.valkey.client() as client:
        for _ in range(flushes):
            client.script_flush()
            time.sleep(0.01)
    assert not house.fleet.refused
    house.check(heal=False)
    row.require_answers(sources=frozenset({"index"}))
    row.saw(f"{flushes} flushes, {house.fleet.accepted} heartbeats taken, none refused")


def test_row_14_replica_promoted(build: Build, row: Row, servers: ExitStack) -> None:
    """A replica, which never saw the scripts, takes the place of its primary."""
    house = build()
    replica = servers.enter_context(start_valkey(config=[f"replicaof 127.0.0.1 {house.valkey.port}"]))
    with replica.client() as client:
        house.until(lambda: client.info("replication")["master_link_status"] == "up", what="the replica")
        client.script_flush()
        house.fleet.start()
        house.valkey.kill()
        house.lookups.until(lambda answer: answer.source == "record")
        client.replicaof("NO", "ONE")
    house.move_to(replica)
    house.until_logged("The index is rebuilt", times=2)
    house.lookups.until(lambda answer: answer.source == "index")
    house.check()
    row.require_answers()
    row.saw("promoted replica: scripts loaded anew, index rebuilt before it was trusted")
