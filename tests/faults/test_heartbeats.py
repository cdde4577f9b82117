"""Heartbeats that are broken, doubled, late, from another life or from another machine."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from app.models.capacity import GpuType
from app.models.heartbeat import Heartbeat, ResourceMetrics, encode
from app.models.identity import AgentId
from app.record import migrate
from tests.faults.conftest import Build, Row
from tests.faults.fleet import Answers, Reporter, Sent
from tests.faults.house import House
from tests.faults.world import World, opened_world, world_settings
from tests.servers import ValkeyServer

ONLY_ONCE = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)


def poison() -> list[dict[str, bytes]]:
    """Entries that no version of this code could have written, and some that a bad one might."""
    agent_id = AgentId("00000000-0000-4000-8000-0000000000ff")

    def with_metrics(**metrics: float) -> dict[str, bytes]:
        known: dict[str, Any] = {
            "gpu_vram_available_gb": 8.0,
            "cpu_cores_available": 4,
            "gpu_type": GpuType.NVIDIA,
            **metrics,
        }
        beat = Heartbeat(agent_id=agent_id, resource_metrics=ResourceMetrics(**known))
        return {"heartbeat": encode(beat)}

    return [
        {"heartbeat": b"\xc1 not msgpack"},
        {"surprise": b"1"},
        {"heartbeat": msgspec.msgpack.encode({"v": 2, "heartbeat": {"future": True}})},
        {"heartbeat": encode(Heartbeat(agent_id=AgentId("no uuid at all")))},
        {"heartbeat": encode(Heartbeat(agent_id=agent_id, hostname="a\x00b"))},
        {"heartbeat": encode(Heartbeat(agent_id=agent_id, boot_id="b", seq=2**63 + 5))},
        with_metrics(gpu_vram_available_gb=float("nan")),
        with_metrics(gpu_vram_available_gb=float("inf")),
        with_metrics(cpu_cores_available=2**62),
        with_metrics(cpu_cores_available=-5),
        {"transition": b"offline", "agent_id": b"x"},
        {"transition": b"no such kind", "agent_id": agent_id.encode(), "reason": b"silent", "at_ms": b"1"},
    ]


def test_row_29_poison(build: Build, row: Row) -> None:
    """Twelve entries that cannot be processed are written into the stream between heartbeats."""
    house = build()
    house.fleet.start()
    entries = poison()
    poisoned: set[bytes] = set()
    with redis.Redis(port=house.valkey.port) as client:
        for fields in entries:
            poisoned.add(client.xadd("headroom:heartbeats", fields))
            house.fleet.report()
        house.check(heal=False)
        letters = client.xrange("headroom:dead-letters")
    reasons = {fields[b"reason"].decode() for _, fields in letters}
    # The next sound entry of the same batch, and only it, must not suffer.
    assert {fields[b"entry_id"] for _, fields in letters} == poisoned
    assert {fields[b"group"] for _, fields in letters} == {b"index", b"record"}
    row.require_answers(sources=frozenset({"index"}))
    row.saw(f"{len(letters)} dead letters of both groups for {len(reasons)} reasons; all heartbeats applied")


def test_row_30_one_agent_many_times_in_a_batch(build: Build, row: Row) -> None:
    """Ingest and recorder are stopped while each agent reports five times, then get it all in one batch."""
    house = build()
    sleepers = [house.by_name["ingest"], house.by_name["recorder"]]
    for sleeper in sleepers:
        sleeper.pause()
    for _ in range(5):
        house.fleet.report()
    for sleeper in sleepers:
        sleeper.resume()
    house.check(heal=False)
    row.require_answers(sources=frozenset({"index"}))
    assert house.counted("recorder", "headroom_recorded_heartbeats_total", outcome="applied") == 6 * 8
    row.saw("the newest of each kept, all counted")


def test_row_34_agents_clock_is_wrong(build: Build, row: Row) -> None:
    """Agents send times that are a day early and a day late."""
    house = build()
    off = [timedelta(days=-1), timedelta(days=1)]
    for number, reporter in enumerate(house.fleet.reporters):
        sent_at = (datetime.now(UTC) + off[number % 2]).isoformat()
        house.fleet.report(among=[reporter], sent_at=sent_at)
    house.check(heal=False)
    for agent_id in house.fleet.ids:
        shown = house.get(f"/api/v1/agents/{agent_id}/capacity").body
        assert shown["status"] == "online"
        assert abs(datetime.fromisoformat(shown["timestamp"]) - datetime.now(UTC)) < timedelta(minutes=1)
    row.require_answers(sources=frozenset({"index"}))
    skewed = house.counted("ingest", "headroom_clock_skew_seconds_count")
    in_a_minute = house.counted("ingest", "headroom_clock_skew_seconds_bucket", le="60.0")
    assert (skewed, in_a_minute) == (8, 0)
    row.saw("all online with the time of receipt; 8 in the skew metric")


class Life:
    """An agent's heartbeats as the network delivers them: some twice, some late, over several boots.

    A plain copy of DESIGN.md's rule says which of them must take effect.
    """

    def __init__(self) -> None:
        self.retired: dict[str, int] = {}
        self.holder: Sent | None = None
        self.ignored = 0

    def hear(self, sent: Sent) -> None:
        if self.holder is not None and sent.boot_id == self.holder.boot_id:
            if sent.seq > self.holder.seq:
                self.holder = sent
            else:
                self.ignored += 1
        elif sent.boot_id in self.retired:
            self.ignored += 1
        else:
            if self.holder is not None:
                self.retired[self.holder.boot_id] = self.holder.seq
            self.holder = sent


@st.composite
def deliveries(draw: st.DrawFn, boots: int) -> list[tuple[int, Sent]]:
    """For three agents: each boot's heartbeats in order, then some repeated and some swapped with the next."""
    delivered: list[tuple[int, Sent]] = []
    for number in range(3):
        life = [
            Sent(f"boot-{boot}", seq)
            for boot in range(draw(st.integers(1, boots)))
            for seq in range(1, draw(st.integers(1, 6)) + 1)
        ]
        repeats = draw(st.lists(st.integers(0, len(life) - 1), max_size=6))
        for index, sent in enumerate(life):
            delivered.append((number, sent))
            delivered += [(number, life[again]) for again in repeats if again < index]
        for at in draw(st.lists(st.integers(0, max(0, len(delivered) - 2)), max_size=6)):
            same_boot = delivered[at : at + 2]
            if len(same_boot) == 2 and len({(one, sent.boot_id) for one, sent in same_boot}) == 1:
                delivered[at : at + 2] = reversed(same_boot)
    return delivered


def run_deliveries(
    server: ValkeyServer, record_url: str, delivered: list[tuple[int, Sent]], lookups: Answers
) -> tuple[int, int]:
    """Returns how many of them had to be ignored, and how many were counted as that."""

    async def run() -> tuple[int, int]:
        server.flush()
        expected: dict[int, Life] = {}
        before = ignored_so_far()
        async with opened_world(world_settings(server.url, record_url)) as world:
            world.lookups = lookups
            for number, sent in delivered:
                reporter = world.reporter(number)
                reporter.boot_id, reporter.seq = sent
                reporter.sent.append(sent)
                await world.send([(reporter, sent)])
                world.advance(0.5)
                await world.search()
                expected.setdefault(number, Life()).hear(sent)
            await world.settle()
            await hold_against(world, expected)
        return sum(life.ignored for life in expected.values()), ignored_so_far() - before

    return asyncio.run(run())


async def hold_against(world: World, expected: dict[int, Life]) -> None:
    for number, life in expected.items():
        reporter: Reporter = world.reporter(number)
        assert life.holder is not None
        # What must be shown is what the rule says, not what was sent last.
        assert reporter.acknowledged is not None
        reporter.acknowledged = life.holder, reporter.acknowledged[1]._replace(ms=0)
        fields: Any = await world.index.capacity._client.hgetall(world.index.keys.agent(reporter.agent_id))
        assert (fields[b"boot_id"].decode(), int(fields[b"seq"])) == life.holder
    assert not await world.differences()


def ignored_so_far() -> int:
    outcomes = ("duplicate", "reordered", "cloned")
    values = [REGISTRY.get_sample_value("headroom_heartbeats_total", {"outcome": each}) for each in outcomes]
    return sum(int(value or 0) for value in values)


@pytest.fixture
def empty_record(tmp_path: Path) -> str:
    url = f"sqlite+aiosqlite:///{tmp_path}/record.db"
    asyncio.run(migrate(url))
    return url


def test_row_31_duplicated_reordered_replayed(
    row: Row, valkey_server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Random lives of three agents whose heartbeats come twice, late and again (Hypothesis)."""
    ignored = 0
    runs = 0
    lookups = Answers()
    row.watch(lookups)

    @ONLY_ONCE
    @given(deliveries(boots=1))
    def run(delivered: list[tuple[int, Sent]]) -> None:
        nonlocal ignored, runs
        must, counted = run_deliveries(valkey_server, fresh_record(tmp_path_factory), delivered, lookups)
        assert must == counted
        ignored += must
        runs += 1

    run()
    row.require_answers(sources=frozenset({"index"}))
    row.saw(f"{runs} lives, {ignored} heartbeats ignored and counted")


def test_row_32_restarts(row: Row, valkey_server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The same with up to four boots, each counting from 1 again, and old boots' heartbeats in between."""
    runs = 0
    lookups = Answers()
    row.watch(lookups)

    @ONLY_ONCE
    @given(deliveries(boots=4))
    def run(delivered: list[tuple[int, Sent]]) -> None:
        nonlocal runs
        run_deliveries(valkey_server, fresh_record(tmp_path_factory), delivered, lookups)
        runs += 1

    run()
    row.require_answers(sources=frozenset({"index"}))
    row.saw(f"{runs} lives: every new boot was accepted, no old one won again")


def fresh_record(factory: pytest.TempPathFactory) -> str:
    url = f"sqlite+aiosqlite:///{factory.mktemp('record')}/record.db"
    asyncio.run(migrate(url))
    return url


def test_row_33_two_machines_one_id(build: Build, row: Row) -> None:
    """A disk image is booted on a second machine; both report under one id by turns."""
    house = build(heartbeat_interval_s=1, offline_after_s=60)
    original = house.fleet.reporters[0]
    clone = Reporter(original.agent_id, boot_id="boot-of-the-clone")
    order = random.Random(33)
    shown: list[str] = []
    flagged: set[str] = set()
    told = 0
    for _ in range(60):
        machine = order.choice([original, clone])
        answer = house.call("POST", f"/api/v1/agents/{machine.agent_id}/heartbeat", machine.next())
        assert answer.status == 202
        machine.acknowledge(answer.body["stream_id"])
        told += answer.body.get("cloned", False)
        house.until_quiet()
        shown.append(boot_shown(house, original.agent_id))
        flagged |= cloned(house)
    changes = sum(before != after for before, after in pairwise(shown))
    assert changes <= 1, shown
    assert flagged == {original.agent_id}
    house.fleet.reporters[0] = clone if shown[-1] == clone.boot_id else original
    house.check()
    row.require_answers(sources=frozenset({"index"}))
    assert told > 0
    assert house.counted("ingest", "headroom_heartbeats_total", outcome="cloned") > 0
    row.saw(f"60 heartbeats of two machines: {changes} change of hands, flagged, {told} answers said so")


def boot_shown(house: House, agent_id: AgentId) -> str:
    with house.valkey.client() as client:
        return str(client.hget(f"headroom:agent:{agent_id}", "boot_id"))


def cloned(house: House) -> set[str]:
    with house.valkey.client() as client:
        return {str(member) for member in client.zrange("headroom:cloned", 0, -1)}
