"""Redis is there and says no: loading, full, busy, read-only, cut off from its primary, out of connections."""

from __future__ import annotations

import threading
from contextlib import ExitStack, suppress
from typing import Final

import pytest
import redis

from tests.faults.conftest import Build, Row
from tests.faults.fleet import Answer, Answers, Lookups
from tests.faults.house import House
from tests.servers import ValkeyServer, start_valkey
from tests.waiting import PATIENCE_S

_FILLERS: Final = 5_000


def refused(house: House) -> Answer:
    """The next answer to a heartbeat that is no 202; it must be a 503 that says when to come again."""
    answer = house.next_refusal()
    assert answer.status == 503, answer
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.body["code"] == "index_unavailable"
    return answer


def accepted_again(house: House) -> None:
    before = house.fleet.accepted
    house.until(lambda: house.fleet.accepted > before + 5, what="heartbeats that are taken")


def test_row_10_loading(build: Build, row: Row, servers: ExitStack) -> None:
    """Redis is killed, and loads its file until it has turned away heartbeats and lookups often enough."""
    valkey = servers.enter_context(start_valkey(appendonly=True, config=["rdbcompression no"]))
    house = build(valkey=valkey)
    make_loading_answer(house)
    house.fleet.start()
    valkey.kill()
    valkey.config += ["key-load-delay 20000", "loading-process-events-interval-bytes 1024"]
    valkey.launch()
    house.until(lambda: loading(valkey), what="LOADING")
    with valkey.client() as client:
        # What was refused while nobody listened yet is not meant.
        refused(house)
        calls = lookups_and_heartbeats(house)
        turned_away = loading_errors(client)
        for _ in range(10):
            refused(house)
        house.lookups.until(lambda answer: answer.source == "record")
        turned_away = loading_errors(client) - turned_away
        calls = lookups_and_heartbeats(house) - calls

        assert loading(valkey), "not all of this was while it loaded"
        client.config_set("key-load-delay", "0")
    house.until(lambda: not loading(valkey), what="the end of loading")
    accepted_again(house)
    house.lookups.until(lambda answer: answer.source == "index")
    house.check(heal=False)
    row.require_answers()
    # Workers included, which try again by themselves.
    assert turned_away < 5 * calls
    row.saw(
        f"503 with Retry-After, lookups from the record, nothing lost; {calls} calls cost {turned_away} commands"
    )


def make_loading_answer(house: House) -> None:
    """Writes a snapshot with room in it: between two KiB of one Redis answers while it loads, and of single
    commands only once in a thousand.
    """
    with house.valkey.client() as client:
        client.mset({f"other:{number}": "x" * 1024 for number in range(_FILLERS)})
        client.bgrewriteaof()
        house.until(lambda: snapshot_is_there(client), what="the snapshot")


def snapshot_is_there(client: redis.Redis) -> bool:
    told = client.info("persistence")
    underway = told["aof_rewrite_scheduled"] or told["aof_rewrite_in_progress"]
    return told["aof_base_size"] > _FILLERS * 1024 and not underway


def lookups_and_heartbeats(house: House) -> int:
    return len(house.lookups.answers) + house.fleet.accepted + sum(house.fleet.refused.values())


def loading_errors(client: redis.Redis) -> int:
    """How many commands were answered LOADING since the server's start."""
    counted = client.info("errorstats").get("errorstat_LOADING", {})
    return int(counted.get("count", 0))


def loading(valkey: ValkeyServer) -> bool:
    try:
        with valkey.client() as client:
            return bool(client.info("persistence")["loading"])
    except redis.ConnectionError:
        return False


def test_row_11_memory_full(build: Build, row: Row) -> None:
    """The limit `maxmemory` is set below what is used, with noeviction."""
    house = build()
    house.fleet.start()
    with house.valkey.client() as client:
        before = {key: size_of(client, key) for key in client.scan_iter(match="headroom:*")}
        client.config_set("maxmemory", "1mb")
        for _ in range(10):
            refused(house)
        # Leases end by themselves; nothing else may be gone, or shorter than it was.
        dropped = {key for key, size in before.items() if ":lease:" not in key and size_of(client, key) < size}
        assert not dropped
        assert client.info("stats")["evicted_keys"] == 0
        client.config_set("maxmemory", "0")
    accepted_again(house)
    house.check(heal=False)
    row.require_answers()
    row.saw(f"{house.fleet.refused[503]} heartbeats answered 503, none dropped, taken again afterwards")


def size_of(client: redis.Redis, key: str) -> int:
    """How many members or fields it has; 1 for a string or a stream, 0 for a key that is not there."""
    kind = str(client.type(key))
    counts = {"zset": client.zcard, "hash": client.hlen, "set": client.scard}
    return int(counts.get(kind, client.exists)(key))


def test_row_13_busy(build: Build, row: Row) -> None:
    """Somebody's script runs until it is ended (SCRIPT KILL); the server answers BUSY to everybody."""
    house = build()
    house.fleet.start()

    def run_for_ever() -> None:
        with redis.Redis(port=house.valkey.port) as other, suppress(redis.ResponseError):
            other.eval("while true do end", 0)

    with house.valkey.client() as client:
        client.config_set("busy-reply-threshold", "10")
        running = threading.Thread(target=run_for_ever)
        running.start()
        for _ in range(3):
            refused(house)
        house.lookups.until(lambda answer: answer.source == "record")
        client.script_kill()
        running.join(PATIENCE_S)
    accepted_again(house)
    house.check(heal=False)
    row.require_answers()
    row.saw("503 for heartbeats, lookups from the record, normal once the script had ended")


@pytest.mark.parametrize("what", ["READONLY", "MASTERDOWN", "NOREPLICAS"])
def test_row_15_no_primary(build: Build, row: Row, what: str) -> None:
    """The server becomes a replica that takes no writes, one cut off from its primary, or a primary without
    replicas.
    """
    house = build()
    house.fleet.start()
    with house.valkey.client() as client:
        if what == "NOREPLICAS":
            client.config_set("min-replicas-to-write", "1")
        else:
            client.config_set("replica-serve-stale-data", "yes" if what == "READONLY" else "no")
            client.replicaof("127.0.0.1", "1")
        refused(house)
        if what == "MASTERDOWN":
            house.lookups.until(lambda answer: answer.source == "record")
        client.config_set("min-replicas-to-write", "0")
        client.replicaof("NO", "ONE")
    accepted_again(house)
    house.check(heal=False)
    row.require_answers()
    row.saw(f"{what}: 503, and taken again once it was over")


def test_row_15_primary_moves(build: Build, row: Row, servers: ExitStack) -> None:
    """A replica is promoted behind the same address while old connections still lead to the demoted primary."""
    house = build()
    replica = servers.enter_context(start_valkey(config=[f"replicaof 127.0.0.1 {house.valkey.port}"]))
    with replica.client() as new, house.valkey.client() as old:
        house.until(lambda: new.info("replication")["master_link_status"] == "up", what="the replica")
        new.replicaof("NO", "ONE")
        house.move_to(replica)
        old.replicaof("127.0.0.1", str(replica.port))
    house.fleet.start()
    accepted_again(house)
    house.lookups.until(lambda answer: answer.source == "index")
    house.check()
    row.require_answers()
    row.saw("the new primary was found although the old connections stayed open")


def test_row_21_pool_exhausted(build: Build, row: Row, servers: ExitStack) -> None:
    """Two connections to Redis, answers that take 0.3 s, and forty callers at once."""
    house = build(redis_pool_size=2, lookups=False)
    planners = [Lookups(house.ports[0], house.fleet.ids, known=house.agents) for _ in range(40)]
    for planner in planners:
        servers.callback(planner.close)
    told = Answers()
    row.watch(told)
    beats: list[Answer] = []

    def call(number: int) -> None:
        one = house.fleet.ids[number % len(house.fleet.ids)]
        planners[number].ask(one)
        beats.append(house.call("POST", f"/api/v1/agents/{one}/heartbeat", {"resource_metrics": {}}))

    house.redis.reply_delay_s = 0.3
    callers = [threading.Thread(target=call, args=(number,)) for number in range(40)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(PATIENCE_S)
    house.redis.reply_delay_s = 0.0
    told.answers = [answer for planner in planners for answer in planner.answers]
    assert len(told.answers) == len(beats) == 40
    row.require_answers()
    assert {beat.status for beat in beats} <= {202, 503}
    assert all(beat.headers.get("retry-after") for beat in beats if beat.status == 503)
    house.check()
    slowest_s = max(answer.took_s for answer in told.answers)
    from_record = sum(answer.source == "record" for answer in told.answers)
    turned_away = sum(beat.status == 503 for beat in beats)
    row.saw(
        f"pool: 40 lookups answered within {slowest_s:.1f} s, {from_record} from the record; {turned_away} of 40 "
        "heartbeats 503; no deadlock"
    )


def test_row_21_server_out_of_connections(build: Build, row: Row) -> None:
    """The limit `maxclients` is reached while the API has lost its connections."""
    house = build()
    house.fleet.start()
    with house.valkey.client() as client:
        client.ping()
        client.config_set("maxclients", "1")
        house.redis.cut()
        refused(house)
        house.lookups.until(lambda answer: answer.source == "record")
        client.config_set("maxclients", "10000")
    accepted_again(house)
    house.check(heal=False)
    row.require_answers()
    row.saw("maxclients: 503, lookups from the record, normal afterwards")
