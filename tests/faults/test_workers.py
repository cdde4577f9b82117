"""Workers that die or sleep between reading, applying, committing and acknowledging."""

from __future__ import annotations

import pytest

from tests.faults.conftest import Build, Row
from tests.faults.fleet import agent_ids
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
    house.by_name[name] = sleeper
    house.until(lambda: rejected(house, name), what="the late write's rejection")
    house.until(lambda: house.reads(sleeper, group), what="the sleeper's next read")
    house.check(heal=False)
    row.require_answers(sources=INDEX_ONLY)
    row.saw(f"{name}: the late write was rejected ({rejected(house, name):.0f} heartbeats) and changed nothing")


def rejected(house: House, name: str) -> float:
    """How many heartbeats the newest worker of that name found to be older than what is there."""
    metric = {"ingest": "headroom_heartbeats_total", "recorder": "headroom_recorded_heartbeats_total"}[name]
    return sum(house.counted(name, metric, outcome=outcome) for outcome in ("duplicate", "reordered"))


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


OFFLINE = "SELECT CAST(agent_id AS varchar(36)) FROM agent_events WHERE to_status = 'offline'"


def declared_offline(house: House) -> list[str]:
    return sorted(agent_id for (agent_id,) in house.sql(OFFLINE))


def test_row_39_reaper_meets_a_fresh_heartbeat(build: Build, row: Row) -> None:
    """A reaper stops after it took two silent agents out; one of them reports before both would be declared
    offline.
    """
    house = build(heartbeat_interval_s=1, offline_after_s=4)
    both = house.another_fleet(agent_ids(2, first=100))
    both.report_batch()
    fresh, dead = both.reporters
    # All at once: nobody else may fall silent by chance.
    house.fleet.start(every_s=0.1, batches=True)
    reaper = house.replace("reaper", stop_at="swept")
    reaper.until_stopped()
    house.until(lambda: house.found() == {*house.fleet.ids}, what="the absence of both")
    both.report(among=[fresh])
    house.until(lambda: fresh.agent_id in house.found(), what="the fresh heartbeat")
    reaper.resume()

    def other_is_offline() -> bool:
        both.report(among=[fresh])
        assert fresh.agent_id in house.found()
        return dead.agent_id in declared_offline(house)

    # The same reaper goes on with both on its list: that it has come to the one says that it passed the other.
    house.until(other_is_offline, what="the other's end")
    assert declared_offline(house) == [dead.agent_id]
    house.settle_quickly()
    row.require_answers(sources=INDEX_ONLY)
    row.saw("the heartbeat won: found at once and never declared offline; the one that stayed silent was")


def test_row_40_two_reapers(build: Build, row: Row) -> None:
    """Two reapers, one of them stopped in the middle of a sweep until the other has its lease; then both awake."""
    house = build(heartbeat_interval_s=1, offline_after_s=4)
    fading = house.another_fleet(agent_ids(4, first=100))
    fading.report_batch()
    house.fleet.start(every_s=0.1, batches=True)
    sleeper = house.replace("reaper", stop_at="swept")
    sleeper.until_stopped()
    house.start("reaper")
    house.until(lambda: declared_offline(house) == fading.ids, what="four agents offline")
    sleeper.resume()
    # It says so after the sweep in the middle of which it slept, and goes on to declare.
    house.until_logged("Took silent agents out of the index", by=sleeper)
    fading.report_batch()
    # A second outage, with both awake. They stay offline: coming back would be counted, too.
    house.until(lambda: declared_offline(house) == sorted(2 * fading.ids), what="four agents offline again")
    changes = "SELECT CAST(agent_id AS varchar(36)), sum(changes) FROM agent_events GROUP BY agent_id"
    told = {**dict.fromkeys(house.fleet.ids, 1), **dict.fromkeys(fading.ids, 4)}
    assert dict(house.sql(changes)) == told
    house.settle_quickly()
    row.require_answers(sources=INDEX_ONLY)
    row.saw("2 outages of 4 agents: 8 transitions to offline, 2 of each, and no other agent's")


def test_row_41_reaper_dead(build: Build, row: Row) -> None:
    """The reaper is killed, then an agent falls silent."""
    house = build(heartbeat_interval_s=1, offline_after_s=4)
    house.by_name["reaper"].kill()
    lone = house.another_fleet(agent_ids(1, first=100))
    lone.report_batch()
    [silent] = lone.ids
    house.fleet.start(every_s=0.1, batches=True)
    house.until(lambda: silent not in house.found(), what="the silent agent's absence")
    for _ in range(50):
        assert silent not in house.found()
    assert house.get(f"/api/v1/agents/{silent}/capacity").body["status"] == "offline"
    assert not declared_offline(house), "there is nobody to declare it"
    house.start("reaper")
    house.until(lambda: declared_offline(house) == [silent], what="the event of a new reaper")
    house.settle_quickly()
    row.require_answers(sources=INDEX_ONLY)
    row.saw(
        "never found after 4 s of silence, reads offline; declared so by the next reaper; back with a heartbeat"
    )
