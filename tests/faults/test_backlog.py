"""More than can be taken: entries trimmed under a group, the whole fleet at once, groups slower than producers."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import yaml

from app.errors import BacklogFullError
from app.index.keys import GROUP_INDEX, GROUP_RECORD
from app.models.capacity import AgentStatus
from app.service.intake import HeartbeatIntake
from app.service.receiving import ReceiverBeat
from tests.faults.conftest import Build, Row
from tests.faults.fleet import heartbeat_of
from tests.faults.house import House
from tests.faults.settled import KEYS
from tests.faults.world import World, opened_world, world_settings
from tests.servers import ValkeyServer

INDEX_ONLY = frozenset({"index"})
ALERTS: Final = Path(__file__).parents[2] / "docs" / "monitoring" / "alerts.yml"
INTERVAL_S: Final = 30
WAVES: Final = 3


def unprocessed(house: House, group: str) -> int:
    """Entries that a group has not acknowledged."""
    with house.valkey.client() as client:
        groups: Any = client.xinfo_groups(KEYS.heartbeats)
        found = next(one for one in groups if one["name"] == group)
        return int(found["lag"]) + int(found["pending"])


@pytest.mark.parametrize(("name", "group"), [("ingest", GROUP_INDEX), ("recorder", GROUP_RECORD)])
def test_row_17_trimmed_under_a_lagging_group(build: Build, row: Row, name: str, group: str) -> None:
    """A group's only worker dies with entries in its hands, more come in, and all of them are trimmed (XTRIM)."""
    house = build()
    other = GROUP_RECORD if group == GROUP_INDEX else GROUP_INDEX
    victim = house.replace(name, stop_at="read")
    house.fleet.report()
    victim.until_stopped()
    victim.kill()
    for _ in range(3):
        house.fleet.report()
    house.until(lambda: not unprocessed(house, other), what="the other group")
    lost = unprocessed(house, group)
    assert lost == 4 * len(house.fleet.ids)
    with house.valkey.client() as client:
        client.xtrim(KEYS.heartbeats, maxlen=0, approximate=False)
    house.start(name)
    # What the index lost the next heartbeats bring; what the record lost is in the index.
    house.check(heal=group == GROUP_INDEX)
    row.require_answers(sources=INDEX_ONLY)
    assert house.counted(name, "headroom_lost_entries_total", group=group) == lost
    gaps = house.sql("SELECT entries FROM record_gaps")
    assert sum(entries for (entries,) in gaps) == (lost if group == GROUP_RECORD else 0)
    healed = "the record taken from the index, the gap kept" if gaps else "healed by the next heartbeats"
    row.saw(f"{name}: {lost} lost entries counted, {healed}")


class Crowd(msgspec.Struct):
    """What became of a fleet that came all at once.

    Attributes:
        arrivals: heartbeats that came, by second.
        accepted: of those, the ones that were taken.
        retry_after_s: what those were told that were not.
        backlog: the most entries that ever waited for the index.
    """

    arrivals: Counter[int] = msgspec.field(default_factory=Counter)
    accepted: Counter[int] = msgspec.field(default_factory=Counter)
    retry_after_s: list[float] = msgspec.field(default_factory=list)
    backlog: int = 0


@pytest.mark.parametrize(
    "agents", [600, pytest.param(100_000, marks=[pytest.mark.heavy, pytest.mark.timeout(1_800)])]
)
def test_row_37_whole_fleet_at_once(row: Row, valkey_server: ValkeyServer, database_url: str, agents: int) -> None:
    """The whole fleet reports in the same moment and then does as it is told; the target is a 25th of it per
    second, a fifth may wait, and the ingest applies a 12th per second.
    """
    valkey_server.flush()
    # The spread is drawn, the same in every run.
    random.seed(37)
    cap = agents // 5

    async def run() -> Crowd:
        settings = world_settings(valkey_server.url, database_url, ingest_batch=min(512, agents // 12))
        async with opened_world(settings) as world:
            for first in range(0, agents, 1_000):
                await world.report(*range(first, min(agents, first + 1_000)))
            await world.settle()
            await world.wait(INTERVAL_S)
            row.watch(world.lookups)
            crowd = await come_at_once(world, agents, cap=cap)
            await world.settle()
            assert not await world.differences()
            assert not await world.misjudged()
            assert await offline(world) == 0
            return crowd

    crowd = asyncio.run(run())
    assert crowd.arrivals[0] == agents
    assert crowd.accepted[0] == cap
    assert crowd.backlog <= cap
    assert {INTERVAL_S / 2 <= told <= INTERVAL_S for told in crowd.retry_after_s} == {True}
    taken_later = sum(crowd.accepted.values()) - cap
    assert taken_later == sum(crowd.arrivals.values()) - agents, "somebody was refused twice"
    # Two intervals later they come as if they had never met.
    later = [crowd.arrivals[second] for second in range(2 * INTERVAL_S, WAVES * INTERVAL_S)]
    assert max(later) <= agents // 12
    row.require_answers(sources=INDEX_ONLY)
    row.saw(
        f"{agents} at t=0: {crowd.accepted[0]} taken, the others 429 with 15 to 30 s to wait; at most "
        f"{max(later)} in a second two intervals later; nobody offline"
    )


async def come_at_once(world: World, agents: int, *, cap: int) -> Crowd:
    """Everybody reports at second 0, and again whenever the answer said."""
    intake = intake_of(world, target_per_s=agents / 25, cap=cap)
    crowd = Crowd()
    due: defaultdict[int, list[int]] = defaultdict(list, {0: list(range(agents))})
    for second in range(WAVES * INTERVAL_S):
        for number in due.pop(second, ()):
            crowd.arrivals[second] += 1
            try:
                wait_s = await report_through(intake, world, number)
                crowd.accepted[second] += 1
            except BacklogFullError as full:
                wait_s = full.retry_after_s or 0.0
                crowd.retry_after_s.append(wait_s)
            due[max(second + 1, int(second + wait_s))].append(number)
        crowd.backlog = max(crowd.backlog, (await world.index.log.load()).unapplied)
        await work_for_a_second(world, applied=agents // 12)
        assert await world.search(limit=50) is not None
    return crowd


def intake_of(world: World, *, target_per_s: float, cap: int) -> HeartbeatIntake:
    return HeartbeatIntake(
        world.index.log,
        interval_s=INTERVAL_S,
        offline_after_s=world.settings.offline_after_s,
        target_per_s=target_per_s,
        max_backlog=cap,
        steady_s=lambda: world.steady_s,
    )


async def report_through(intake: HeartbeatIntake, world: World, number: int) -> float:
    """Returns when to come again; raises BacklogFullError."""
    reporter = world.reporter(number)
    reporter.next()
    sent = reporter.sent[-1]
    receipt = await intake.accept([heartbeat_of(reporter, sent, AgentStatus.ONLINE)])
    world.acknowledge(reporter, sent, receipt.stream_ids[0], AgentStatus.ONLINE)
    return receipt.next_heartbeat_s


async def work_for_a_second(world: World, *, applied: int) -> None:
    for _ in range(0, applied, world.settings.ingest_batch):
        await world.ingest()
    for _ in range(0, applied, world.settings.record_batch):
        await world.record_round()
    world.advance(1)
    await world.watch.look()
    await world.receive()
    await world.reaper.sweep()


async def offline(world: World) -> int:
    async with world.record.database.reading() as connection:
        found = await connection.exec_driver_sql("SELECT count(*) FROM agent_events WHERE to_status = 'offline'")
        return int(found.scalar_one())


def test_row_49_index_group_slower(build: Build, row: Row) -> None:
    """The ingest is stopped, for longer than an agent may be silent, while 200 agents report until they are
    refused.
    """
    cap = 4_000
    house = build(agents=200, stream_max_entries=cap, heartbeat_interval_s=3, offline_after_s=6)
    ingest = house.by_name["ingest"]
    ingest.pause()
    metric, threshold_s = alarm("HeadroomIngestBehind")
    house.fleet.start(every_s=1.0, batches=True)
    house.until(lambda: house.counted("api", metric, group=GROUP_INDEX) > threshold_s, what="the alarm")
    # What waits may be the heartbeats of just those who look silent.
    assert house.found() == house.agents
    house.fleet.stop()
    while (answer := house.fleet.report_batch()).status == 202:
        assert unprocessed(house, GROUP_INDEX) <= cap + len(house.agents)
    assert answer.status == 429
    assert answer.body["code"] == "backlog_full"
    assert int(answer.headers["retry-after"]) >= 1
    most = unprocessed(house, GROUP_INDEX)
    assert house.fleet.report_batch().status == 429
    assert cap <= unprocessed(house, GROUP_INDEX) == most <= cap + len(house.agents)
    ingest.resume()
    # They go on: whoever is offline now was declared so for the time that the ingest slept.
    house.fleet.start(every_s=0.2, batches=True)
    house.until(lambda: unprocessed(house, GROUP_INDEX) <= len(house.agents), what="the end of the backlog")
    house.until(lambda: house.counted("api", metric, group=GROUP_INDEX) < threshold_s, what="the end of the alarm")
    with house.valkey.client() as client:
        assert (client.zcard(KEYS.silent), client.zcard(KEYS.offline)) == (0, 0)
    assert house.counted("reaper", "headroom_swept_agents_total") == 0
    # Not at once: whose figures rise while a search goes down the set slips through it.
    house.until(lambda: house.found() == house.agents, what="everybody in a search")
    house.fleet.stop()
    house.fleet.report_batch()
    house.until_quiet()
    assert house.sql("SELECT count(*) FROM agent_events WHERE to_status = 'offline'") == [(0,)]
    house.settle_quickly()
    row.require_answers(sources=INDEX_ONLY)
    row.saw(
        f"index: {most} entries waited of at most {cap}, then 429 and an alarm; nobody looked silent or was "
        "declared offline"
    )


def test_row_49_refused_for_minutes(row: Row, valkey_server: ValkeyServer, database_url: str) -> None:
    """Nothing is applied for five minutes, on a clock that is turned; the fleet is refused for most of them."""
    valkey_server.flush()
    random.seed(49)
    # Fewer than have a brake: it must not be what keeps them from being declared offline.
    agents = 90

    async def run() -> int:
        async with opened_world(world_settings(valkey_server.url, database_url)) as world:
            await world.report(*range(agents))
            await world.settle()
            row.watch(world.lookups)
            refused = await minutes_without_ingest(world, agents)
            assert len(await world.found()) == agents
            await world.settle()
            assert not await world.differences()
            assert await offline(world) == 0
            return refused

    refused = asyncio.run(run())
    assert refused > agents
    row.require_answers(sources=INDEX_ONLY)
    row.saw(
        f"index: nothing applied for 300 s, {refused} heartbeats 429; nobody declared offline then or afterwards"
    )


async def minutes_without_ingest(world: World, agents: int) -> int:
    """Five minutes without an ingest and two with one; returns how many heartbeats were refused."""
    intake = intake_of(world, target_per_s=agents, cap=2 * agents)
    beat = ReceiverBeat(world.index.upkeep, "world", refused=intake.take_refused)
    due = {number: float(number % INTERVAL_S) for number in range(agents)}
    refused = 0
    step_s = int(beat.pause_s)
    for second in range(0, 420, step_s):
        for number in [number for number, due_s in due.items() if due_s <= second]:
            try:
                wait_s = await report_through(intake, world, number)
            except BacklogFullError as full:
                wait_s = full.retry_after_s or 0.0
                refused += 1
            due[number] = second + wait_s
        await beat.run_once()
        if second >= 300:
            await world.ingest()
        await world.record_round()
        world.advance(step_s)
        await world.watch.look()
        await world.reaper.sweep()
        assert await world.search(limit=50) is not None
    return refused


def alarm(name: str) -> tuple[str, float]:
    """The gauge that an alert watches, and above which value it goes off."""
    rules = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
    expression = next(rule["expr"] for rule in rules if rule["alert"] == name)
    found = re.search(r'(headroom_\w+)\{group="index"\}\) > (\d+)$', expression)
    assert found, expression
    return found[1], float(found[2])


def test_row_49_record_group_slower(build: Build, row: Row) -> None:
    """The recorder is stopped while 200 agents report more than the stream may hold."""
    house = build(agents=200, stream_max_entries=1_000)
    recorder = house.by_name["recorder"]
    recorder.pause()
    reported = 0

    def trimmed() -> bool:
        nonlocal reported
        if unprocessed(house, GROUP_INDEX):
            return False
        assert house.fleet.report_batch().status == 202
        reported += len(house.fleet.ids)
        with house.valkey.client() as client:
            return bool(client.xlen(KEYS.heartbeats) < reported - len(house.fleet.ids))

    house.until(trimmed, what="the stream to be trimmed past the recorder")
    recorder.resume()
    house.check(heal=False)
    row.require_answers(sources=INDEX_ONLY)
    lost = house.counted("recorder", "headroom_lost_entries_total", group=GROUP_RECORD)
    [(gap,)] = house.sql("SELECT sum(entries) FROM record_gaps")
    assert 0 < lost == gap < reported
    house.until_logged("Reconciled the record with the index after a gap", by=recorder)
    row.saw(f"record: {reported} reported, none refused, {lost:.0f} trimmed and counted, then reconciled")
