"""Workers that die or sleep between reading, applying, committing and acknowledging."""

from __future__ import annotations

import pytest

from tests.faults.conftest import Build, Row
from tests.faults.house import House

INDEX_ONLY = frozenset({"index"})


def pending_of_others(house: House, group: str, heir: int) -> int:
    """How many entries consumers of other processes have read and not acknowledged."""
    return sum(one["pending"] for one in house.consumers(group) if f"-{heir}-" not in one["name"])


def test_row_01_ingest_dies_before_it_applied(build: Build, row: Row) -> None:
    """An ingest is killed after it read entries and before it applied them."""
    house = build()
    victim = house.replace("ingest", stop_at="read")
    house.fleet.start()
    victim.until_stopped()
    held = pending_of_others(house, "index", heir=0)
    assert held
    house.start("ingest")
    victim.kill()
    settled_s = house.check(heal=False)
    row.require_answers(sources=INDEX_ONLY)
    row.saw(f"another ingest took its {held} entries over, quiet after {settled_s:.1f} s")


def test_row_02_ingest_dies_before_it_acknowledged(build: Build, row: Row) -> None:
    """An ingest is killed after it applied entries and before it acknowledged them."""
    house = build()
    victim = house.replace("ingest", stop_at="applied")
    house.fleet.start()
    victim.until_stopped()
    held = pending_of_others(house, "index", heir=0)
    assert held
    house.start("ingest")
    victim.kill()
    house.check(heal=False)
    row.require_answers(sources=INDEX_ONLY)
    assert house.sql("SELECT count(*) FROM agent_events") == [(len(house.fleet.ids),)]
    row.saw(f"{held} entries applied again without effect")


def test_row_03_recorder_dies_before_it_acknowledged(build: Build, row: Row) -> None:
    """A recorder is killed after its commit and before it acknowledged."""
    house = build()
    victim = house.replace("recorder", stop_at="committed")
    house.fleet.start()
    victim.until_stopped()
    held = pending_of_others(house, "record", heir=0)
    assert held
    house.start("recorder")
    victim.kill()
    house.check(heal=False)
    row.require_answers(sources=INDEX_ONLY)
    assert house.sql("SELECT count(*) FROM agent_events") == [(len(house.fleet.ids),)]
    row.saw(f"{held} entries recorded again without effect")


@pytest.mark.parametrize(("name", "group"), [("ingest", "index"), ("recorder", "record")])
def test_row_04_worker_sleeps_past_the_takeover(build: Build, row: Row, name: str, group: str) -> None:
    """A worker is stopped after it read, for longer than the takeover time, and wakes up."""
    house = build()
    sleeper = house.replace(name, stop_at="read")
    house.fleet.start()
    sleeper.until_stopped()
    heir = house.start(name)
    house.until(lambda: not pending_of_others(house, group, heir.pid), what="the takeover")
    house.fleet.stop()
    house.fleet.report()
    house.until_quiet()
    sleeper.resume()
    # Its write comes after everything that it had read was superseded; then it works on as one of two.
    house.fleet.start()
    house.until(lambda: house.reads(sleeper, group), what="the sleeper's next read")
    house.check(heal=False)
    row.require_answers(sources=INDEX_ONLY)
    row.saw(f"{name}: the late write changed nothing")


def test_row_07_rebuild_meets_fresher_heartbeats(build: Build, row: Row) -> None:
    """A rebuild stops after it read agents from the record; half of them report before it goes on. Two are
    cordoned.
    """
    house = build(agents=12)
    cordoned = house.fleet.ids[:2]
    for agent_id in cordoned:
        house.cordon(agent_id, {"reason": "new disk", "actor": "ada"})
    house.until_quiet()
    house.by_name["ingest"].kill()
    rebuilder = house.replace("reaper", stop_at="restoring")
    house.until_logged("Worker runs", by=rebuilder)
    house.valkey.flush()
    rebuilder.until_stopped()
    house.start("ingest")
    fresh = house.fleet.reporters[::2]
    house.fleet.report(among=fresh)
    house.until(lambda: house.applied(fresh), what="the fresher heartbeats in the index")
    rebuilder.resume()
    house.until_logged("The index is rebuilt", by=rebuilder)
    house.until(lambda: house.found() == {*house.fleet.ids[2:]}, what="both cordons, that of a fresher agent too")
    for agent_id in cordoned:
        house.cordon(agent_id, None)
    house.check(heal=False)
    row.require_answers()
    row.saw(f"{len(fresh)} fresher agents stayed, the others came from the record, all with their cordons")


def test_row_39_reaper_meets_a_fresh_heartbeat(build: Build, row: Row) -> None:
    """A reaper stops after it took a silent agent out; the agent reports before it is declared offline."""
    house = build(heartbeat_interval_s=1, offline_after_s=3)
    silent, *others = house.fleet.reporters
    house.fleet.start(every_s=0.05, among=others)
    reaper = house.replace("reaper", stop_at="swept")
    reaper.until_stopped()
    assert silent.agent_id not in house.found()
    house.fleet.report(among=[silent])
    house.until(lambda: silent.agent_id in house.found(), what="the fresh heartbeat")
    reaper.resume()
    for _ in range(20):
        house.fleet.report(among=[silent])
        assert silent.agent_id in house.found()
    house.settle_quickly()
    row.require_answers(sources=INDEX_ONLY)
    assert house.sql("SELECT count(*) FROM agent_events WHERE to_status = 'offline'") == [(0,)]
    row.saw("the heartbeat won: found at once, no offline event")


def test_row_40_two_reapers(build: Build, row: Row) -> None:
    """Two reapers, one of them stopped in the middle of a sweep until the other has its lease."""
    house = build(heartbeat_interval_s=1, offline_after_s=3)
    fading, lively = house.fleet.reporters[:4], house.fleet.reporters[4:]
    house.fleet.start(every_s=0.05, among=lively)
    offline = "SELECT count(*) FROM agent_events WHERE to_status = 'offline'"
    sleeper = house.replace("reaper", stop_at="swept")
    sleeper.until_stopped()
    house.start("reaper")
    house.until(lambda: house.sql(offline) == [(4,)], what="four agents offline")
    sleeper.resume()
    house.fleet.report(among=fading)
    # A second outage, with both awake.
    house.until(lambda: house.sql(offline) == [(8,)], what="four agents offline again")
    house.fleet.report(among=fading)
    house.settle_quickly()
    row.require_answers(sources=INDEX_ONLY)
    # By now they are flapping: their last return stands in the event of their last silence.
    changes = "SELECT DISTINCT n FROM (SELECT sum(changes) AS n FROM agent_events GROUP BY agent_id) AS agents"
    assert sorted(house.sql(changes)) == [(1,), (5,)]
    row.saw("2 outages of 4 agents: 8 transitions to offline")


def test_row_41_reaper_dead(build: Build, row: Row) -> None:
    """There is no reaper and an agent falls silent."""
    house = build("ingest", "recorder", "api", heartbeat_interval_s=1, offline_after_s=3)
    silent, *others = house.fleet.reporters
    house.fleet.start(every_s=0.05, among=others)
    house.until(lambda: silent.agent_id not in house.found(), what="the silent agent's absence")
    for _ in range(50):
        assert silent.agent_id not in house.found()
    assert house.get(f"/api/v1/agents/{silent.agent_id}/capacity").body["status"] == "offline"
    house.settle_quickly()
    row.require_answers(sources=INDEX_ONLY)
    row.saw("never found after 3 s of silence, reads offline; back with its next heartbeat")
