"""Ingest: what the index cannot take stops nobody else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import REGISTRY
from redis.exceptions import ResponseError

from app.errors import IndexUnavailableError
from app.index.clock import ManualClock
from app.index.opening import Index
from app.index.upkeep import APPLY_SLICE
from app.models.capacity import AgentStatus, CapacityQuery, GpuType
from app.models.heartbeat import ResourceMetrics
from app.models.identity import StreamId
from app.models.insight import PoolTotals
from app.record import migrate, open_record
from tests.indexing import agent_id, apply_everything, heartbeat, index_settings, opened_index
from tests.servers import start_valkey
from workers.audit import Audit
from workers.clock_watch import ClockWatch
from workers.ingest import Ingest
from workers.reaper import Reaper
from workers.recorder import Recorder


@pytest.fixture
async def index(redis_url: str) -> AsyncIterator[Index]:
    async with opened_index(index_settings(redis_url)) as index:
        yield index


async def totals(index: Index) -> list[PoolTotals]:
    found, _ = await index.insight.summary(agent_type=None, pool_name=None, limit=10, after=None)
    return found


async def test_a_heartbeat_of_an_agent_that_somebody_damaged_is_set_aside(index: Index) -> None:
    client: Any = index.capacity._client
    await index.log.append([heartbeat(n, vram=float(n)) for n in range(1, 21)])
    await apply_everything(index)
    before = await totals(index)
    await client.delete(index.keys.agent(agent_id(5)))
    await client.set(index.keys.agent(agent_id(5)), "not a hash")
    await index.log.append([heartbeat(n, vram=float(n) + 1) for n in range(1, 21)])
    await apply_everything(index)
    for n in (*range(1, 5), *range(6, 21)):
        agent = await index.capacity.get(agent_id(n))
        assert agent is not None
        assert agent.gpu_vram_available_gb == n + 1.0
    letters = await client.xrange(index.keys.dead_letters)
    assert [fields[b"reason"] for _, fields in letters] == [b"The index cannot take it"]
    # What was applied beside it counts, and the damaged one as it did before.
    assert sum(one.gpu_vram_available_gb for one in await totals(index)) == (
        sum(one.gpu_vram_available_gb for one in before) + 19.0
    )


async def test_a_damaged_agent_costs_the_others_no_transition(redis_url: str) -> None:
    """Its neighbours go busy and come back, one in the script call that meets it and the other in the next one."""
    async with opened_index(index_settings(redis_url, ingest_batch=2 * APPLY_SLICE)) as index:
        client: Any = index.capacity._client
        await index.log.append([heartbeat(n) for n in range(1, 21)])
        await apply_everything(index)
        await client.delete(index.keys.agent(agent_id(5)))
        await client.set(index.keys.agent(agent_id(5)), "not a hash")
        neighbours = [1, 2, 3, 4, 6, 7, 8]
        await index.log.append([heartbeat(n, status=AgentStatus.BUSY) for n in range(1, 9)])
        await index.log.append([heartbeat(n) for n in (*neighbours, 9)])
        await apply_everything(index)
        assert len(await client.xrange(index.keys.dead_letters)) == 1
        for n in neighbours:
            assert await transitions(index, n) == ["online", "busy", "online"]


async def test_a_full_server_costs_no_transition() -> None:
    """What it refuses first is refused with all that follows, even where that begins with less to write."""
    with start_valkey() as server, server.client() as operator:
        async with opened_index(index_settings(server.url, ingest_batch=2 * APPLY_SLICE)) as index:
            await index.log.append([heartbeat(n) for n in range(1, 21)])
            await apply_everything(index)
            unchanged = [heartbeat(n) for n in (20, 19)]
            busy = [heartbeat(n, status=AgentStatus.BUSY) for n in range(1, 7)]
            changed = [heartbeat(n, vram=n + 1.0) for n in (6, 1, 2, 3, 4, 5, 7, 8)]
            await index.log.append([*unchanged, *busy, *changed])
            operator.config_set("maxmemory", "1mb")
            ingest = Ingest(index.index_reader(), index.upkeep)
            with pytest.raises(IndexUnavailableError):
                await ingest.run_once()
            assert ingest._reader.behind, "the calls were not sent ahead"
            operator.config_set("maxmemory", "0")
            await apply_everything(index, ingest=ingest)
            assert not await index.capacity._client.exists(index.keys.dead_letters)
            for n in range(1, 7):
                assert await transitions(index, n) == ["online", "busy", "online"]


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("CONFIG SET maxmemory 1mb", IndexUnavailableError),
        ("CONFIG SET min-replicas-to-write 1", IndexUnavailableError),
        ("REPLICAOF 127.0.0.1 1", IndexUnavailableError),
        ("ACL SETUSER default -hset", ResponseError),
    ],
)
@pytest.mark.parametrize("known", [True, False], ids=["unchanged", "new"])
async def test_what_the_server_refuses_is_no_fault_of_an_agent(
    command: str, error: type[Exception], *, known: bool
) -> None:
    with start_valkey() as server, server.client() as operator:
        async with opened_index(index_settings(server.url)) as index:
            beats = [(StreamId(1_700_000_000_000, n), heartbeat(n)) for n in range(1, 21)]
            if known:
                await index.upkeep.apply(beats)
            operator.execute_command(command)
            with pytest.raises(error):
                await index.upkeep.apply([(StreamId(stream_id.ms + 1), beat) for stream_id, beat in beats])


async def transitions(index: Index, number: int) -> list[str]:
    entries: Any = await index.capacity._client.xrange(index.keys.heartbeats)
    of_agent = [fields for _, fields in entries if fields.get(b"agent_id") == agent_id(number).encode()]
    return [fields[b"transition"].decode() for fields in of_agent if b"transition" in fields]


async def test_an_agent_whose_place_cannot_be_read_holds_up_nobody(index: Index) -> None:
    await index.log.append([heartbeat(n, vram=float(n)) for n in range(1, 21)])
    await apply_everything(index)
    client: Any = index.capacity._client
    await client.hset(index.keys.agent(agent_id(5)), "indexed", "nonsense")
    await index.log.append([heartbeat(n, vram=float(n) + 1) for n in range(1, 21)])
    await apply_everything(index)
    found = (await index.capacity.find(CapacityQuery())).agents
    assert {row.agent_id: row.gpu_vram_available_gb for row in found} == {
        agent_id(n): n + 1.0 for n in range(1, 21)
    }


async def test_a_key_that_is_no_hash_any_more_stops_no_search_and_no_sweep(redis_url: str, tmp_path: Path) -> None:
    clock = ManualClock(1_800_000_000_000)
    settings = index_settings(redis_url, database_url=f"sqlite+aiosqlite:///{tmp_path / 'record.db'}")
    await migrate(settings.record_url)
    record = open_record(settings)
    async with opened_index(settings, clock=clock) as index:
        client: Any = index.capacity._client
        clock.advance(90)
        machine = ResourceMetrics(cpu_cores_physical=8, gpu_vram_total_gb=24.0, gpu_type=GpuType.NVIDIA)
        for n in range(1, 6):
            metrics = msgspec.structs.replace(machine, gpu_vram_available_gb=float(n))
            await index.log.append([heartbeat(n, resource_metrics=metrics)])
        await apply_everything(index)
        await Recorder(index.record_reader(), record.writer).run_once()
        await client.delete(index.keys.agent(agent_id(5)))
        await client.set(index.keys.agent(agent_id(5)), "not a hash")

        others = [agent_id(n) for n in range(4, 0, -1)]
        for query in (CapacityQuery(), CapacityQuery(limit=2), CapacityQuery(gpu_type=GpuType.NVIDIA)):
            before = skipped()
            found = (await index.capacity.find(query)).agents
            assert [row.agent_id for row in found] == others[: query.limit]
            assert skipped() == before + 1
        assert await index.capacity.get(agent_id(5)) is None
        assert (await index.insight.explain(CapacityQuery(min_gpu_vram_gb=50.0))).fitting == 0
        assert len(await index.insight.big_enough(CapacityQuery(min_gpu_vram_gb=0.0))) == 4
        assert len((await index.fleet.page(limit=100)).agents) == 4
        assert len([agent async for page in index.states.agents() for agent in page]) == 4

        clock.jump(-3600)
        assert await index.upkeep.note_jump(-3_600_000)
        assert await index.upkeep.readmit() == 5
        clock.advance(91)
        await index.log.append([heartbeat(1, vram=1.0)])
        await apply_everything(index)
        await index.upkeep.receive("api", gap_s=1e9)
        assert await Reaper(index.upkeep, "test", every_s=0, watch=ClockWatch(index.upkeep)).sweep() == 3
        audit = Audit(index, record, pause_s=0, settle_s=0)
        assert "its key is no hash" in {one.what async for one in audit.run(repair=True)}
        # From the record.
        assert await index.capacity.get(agent_id(5)) is not None
        await client.set(index.keys.agent(agent_id(4)), "not a hash")
        async for page in record.reader.states(page_size=10):
            await index.upkeep.restore(page)
        assert await index.capacity.get(agent_id(4)) is not None
    await record.close()


def skipped() -> float:
    return REGISTRY.get_sample_value("headroom_malformed_agents_total", {"source": "index"}) or 0.0
