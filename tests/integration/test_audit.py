"""The audit finds what was damaged, nothing else, and puts it right."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.index.audit import Totals
from app.index.clock import ManualClock
from app.index.connect import send_reads
from app.index.opening import Index
from app.index.placement import from_ms
from app.models.capacity import AgentStatus, GpuType
from app.models.cordon import Cordon
from app.models.finding import Finding
from app.models.heartbeat import ResourceMetrics
from app.record import Record, migrate, open_record
from tests.consistency import assert_index_consistent
from tests.indexing import agent_id, apply_everything, heartbeat, index_settings, opened_index, unapplied
from workers.audit import Audit
from workers.clock_watch import ClockWatch
from workers.ingest import Ingest
from workers.reaper import Reaper
from workers.recorder import Recorder


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_800_000_000_000)


@pytest.fixture
async def index(redis_url: str, clock: ManualClock) -> AsyncIterator[Index]:
    async with opened_index(index_settings(redis_url), clock=clock) as index:
        clock.advance(90)
        yield index


@pytest.fixture
async def record(record_url: str) -> AsyncIterator[Record]:
    settings = index_settings("redis://unused", database_url=record_url)
    await migrate(settings.record_url)
    record = open_record(settings)
    yield record
    await record.close()


async def audit(index: Index, record: Record, *, repair: bool = False) -> list[Finding]:
    return [one async for one in Audit(index, record, settle_s=0, pause_s=0).run(repair=repair)]


@pytest.fixture
async def fleet(index: Index, record: Record, clock: ManualClock) -> None:
    """Agents in every state, recorded."""
    await index.log.append([heartbeat(n, vram=2.5 * n, cores=3 * n, seq=1) for n in range(9)])
    await apply_everything(index)
    clock.advance(60)
    await index.log.append([heartbeat(n, vram=2.5 * n, cores=3 * n, seq=2) for n in range(1, 6)])
    await index.log.append([heartbeat(6, seq=2, status=AgentStatus.BUSY)])
    await index.log.append([heartbeat(7, seq=2, status=AgentStatus.OFFLINE, resource_metrics=None)])
    # Types whose keys look like others' at first sight.
    await index.log.append([heartbeat(30, seq=1, agent_type="agent"), heartbeat(31, seq=1, agent_type="vram")])
    await apply_everything(index)
    await index.cordons.cordon(agent_id(5), Cordon(reason="r", actor="a", since=from_ms(clock.now_ms())))
    await apply_everything(index)
    clock.advance(40)
    await Reaper(index.upkeep, "test", every_s=0, watch=ClockWatch(index.upkeep)).sweep()
    await apply_everything(index)
    await Recorder(index.record_reader(), record.writer).run_once()


async def test_a_sound_system_has_no_findings(index: Index, record: Record, fleet: None) -> None:
    assert await audit(index, record) == []


DAMAGES: list[tuple[str, list[tuple[Any, ...]]]] = [
    ("index", [("ZREM", "headroom:desktop:vram:cores:4+", agent_id(2))]),
    ("index", [("ZADD", "headroom:desktop:vram", "99", agent_id(3))]),
    ("index", [("ZADD", "headroom:desktop:vram:cores:1024+", "99", agent_id(3))]),
    ("index", [("ZADD", "headroom:desktop:pool:default:vram:cores:1+", "1", agent_id(77))]),
    ("index", [("ZREM", "headroom:seen", agent_id(4))]),
    ("index", [("HSET", f"headroom:agent:{agent_id(4)}", "indexed", "10.0 12 desktop:busy default")]),
    ("totals", [("HINCRBY", "headroom:desktop:totals:default", "nvidia:vram_available_mib", "7")]),
    ("totals", [("HINCRBY", "headroom:desktop:totals:*", "amd:online", "1")]),
]


@pytest.mark.parametrize("fields", [("machine",), ("last_id", "pool_name")])
async def test_a_hash_that_lacks_fields_is_reported(
    index: Index, record: Record, fleet: None, fields: tuple[str, ...]
) -> None:
    """What it counted as is lost with it: only a rebuild puts that right."""
    client: Any = index.capacity._client
    await client.hdel(index.keys.agent(agent_id(3)), *fields)
    for repair in (False, True):
        found = [one for one in await audit(index, record, repair=repair) if one.what == "its hash lacks fields"]
        assert [(one.subject, one.repaired) for one in found] == [(agent_id(3), False)]


@pytest.mark.parametrize(("where", "commands"), DAMAGES)
async def test_damage_to_the_index_is_found_and_put_right(
    index: Index, record: Record, fleet: None, where: str, commands: list[tuple[Any, ...]]
) -> None:
    client: Any = index.capacity._client
    for command in commands:
        await client.execute_command(*command)
    found = await audit(index, record)
    assert found
    assert {one.where for one in found if not one.repaired} >= {where}
    repaired = await audit(index, record, repair=True)
    assert all(one.repaired for one in repaired)
    assert await audit(index, record) == []
    await assert_index_consistent(index)


async def test_what_the_record_missed_is_found_and_recorded(index: Index, record: Record, fleet: None) -> None:
    client: Any = index.capacity._client
    await index.log.append([heartbeat(1, vram=40.0, cores=3, seq=3), heartbeat(20, seq=1)])
    await apply_everything(index)
    await client.xtrim(index.keys.heartbeats, maxlen=0, approximate=False)
    found = await audit(index, record)
    assert {(one.where, one.subject) for one in found} == {("record", agent_id(1)), ("record", agent_id(20))}
    await audit(index, record, repair=True)
    assert await audit(index, record) == []


async def test_an_agent_that_the_index_lost_comes_back_from_the_record(
    index: Index, record: Record, fleet: None
) -> None:
    client: Any = index.capacity._client
    await client.delete(index.keys.agent(agent_id(3)))
    await audit(index, record, repair=True)
    await audit(index, record, repair=True)
    assert await audit(index, record) == []
    agent = await index.capacity.get(agent_id(3))
    assert agent is not None
    assert agent.gpu_vram_available_gb == 7.5


async def test_what_a_repair_cannot_mend_is_not_called_repaired(index: Index, record: Record, fleet: None) -> None:
    """The index shows other metrics under the entry that the record has: neither side is the newer by that."""
    client: Any = index.capacity._client
    await client.hset(index.keys.agent(agent_id(2)), mapping={"memory_available_gb": 1.5})
    await index.log.append([heartbeat(1, vram=40.0, cores=3, seq=3)])
    await apply_everything(index)
    await client.xtrim(index.keys.heartbeats, maxlen=0, approximate=False)
    found = await audit(index, record, repair=True)
    assert [(one.subject, one.repaired) for one in found] == [(agent_id(1), True), (agent_id(2), False)]
    assert [one.subject for one in await audit(index, record)] == [agent_id(2)]


async def test_hashes_are_read_by_two_hundred_at_a_time(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    async def counted(pipeline: Any) -> list[Any]:
        sizes.append(len(pipeline))
        return await send_reads(pipeline)

    monkeypatch.setattr("app.index.states.send_reads", counted)
    await index.log.append([heartbeat(n) for n in range(450)])
    await apply_everything(index)
    read = await index.states.some([agent_id(n) for n in range(450)])
    paged = [agent async for page in index.states.agents() for agent in page]
    assert [one.heartbeat.agent_id for one in read] == [agent_id(n) for n in range(450)]
    assert {one.heartbeat.agent_id for one in paged} == {agent_id(n) for n in range(450)}
    assert max(sizes) == 200


async def test_differences_are_settled_a_part_at_a_time(
    index: Index, record: Record, fleet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fleet of which much differs need not fit into the audit's memory."""
    monkeypatch.setattr("workers.audit._MOST_SUSPECTS", 2)
    client: Any = index.capacity._client
    await index.log.append([heartbeat(n, vram=1.0, cores=3 * n, seq=3) for n in (1, 2, 4)])
    await index.log.append([heartbeat(n, seq=1) for n in range(20, 24)])
    await apply_everything(index)
    await client.xtrim(index.keys.heartbeats, maxlen=0, approximate=False)
    await client.delete(index.keys.agent(agent_id(3)))
    found = [one for one in await audit(index, record) if one.where == "record"]
    assert sorted(one.subject for one in found) == [agent_id(n) for n in (1, 2, 3, 4, 20, 21, 22, 23)]
    await audit(index, record, repair=True)
    await audit(index, record, repair=True)
    assert await audit(index, record) == []


@pytest.mark.parametrize(
    "damage",
    [
        "DEL {0}\nSET {0} words",
        "HSET {0} nvidia:vram_available_mib words",
        "HSET {0} nvidia:vram_total_mib words",
        "HSET {0} nvidia:vram_total_mib 0163840",
    ],
)
async def test_totals_that_somebody_damaged_hold_up_nobody_and_are_mended(
    index: Index, record: Record, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    client: Any = index.capacity._client
    await index.log.append([heartbeat(n) for n in range(1, 21)])
    await apply_everything(index)
    key = index.keys.all_totals("desktop")
    assert await client.exists(key)
    for line in damage.format(key).splitlines():
        await client.execute_command(*line.split())
    bigger = ResourceMetrics(gpu_vram_total_gb=24.0, gpu_vram_available_gb=9.0, gpu_type=GpuType.NVIDIA)
    await index.log.append([heartbeat(n, resource_metrics=bigger) for n in range(1, 21)])
    await index.log.append([heartbeat(n, resource_metrics=bigger, pool_name="fresh") for n in range(21, 26)])
    ingest = Ingest(index.index_reader(), index.upkeep)
    for _ in range(2):
        await ingest.run_once()
    assert not await unapplied(index), "a call failed"
    assert not await client.exists(index.keys.dead_letters)
    assert capsys.readouterr().out.count("Totals cannot be written") == 1
    # What else the damaged ones were written with.
    fresh = await client.hgetall(index.keys.totals("desktop", "fresh"))
    assert (fresh[b"nvidia:placeable"], await client.hget(index.keys.types, "desktop")) == (b"5", b"25")
    await Recorder(index.record_reader(), record.writer).run_once()
    assert {(one.where, one.repaired) for one in await audit(index, record)} == {("totals", False)}
    assert {(one.where, one.repaired) for one in await audit(index, record, repair=True)} == {("totals", True)}
    assert await audit(index, record) == []
    assert int(await client.hget(key, "nvidia:vram_total_mib")) == 25 * 24 * 1024


async def test_damaged_totals_are_mended_while_heartbeats_come_in(
    index: Index, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    client: Any = index.capacity._client
    await index.log.append([heartbeat(n, vram=8.0) for n in range(1, 21)])
    await apply_everything(index)
    read, vram = index.audit.totals, 8.0

    async def busy() -> Totals:
        nonlocal vram
        vram += 1.0
        await index.log.append([heartbeat(1, vram=vram)])
        await apply_everything(index)
        return await read()

    monkeypatch.setattr(index.audit, "totals", busy)
    key = index.keys.all_totals("desktop")
    await client.hset(key, "nvidia:vram_available_mib", "words")
    assert [one for one in await audit(index, record, repair=True) if one.where == "totals"]
    off = int(await client.hget(key, "nvidia:vram_available_mib")) - (19 * 8.0 + vram) * 1024
    assert abs(off) <= 1024
