"""Reading the log: nothing is lost when a consumer dies, fails halfway, or the stream is flushed under it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from app.errors import IndexRebuildingError, IndexUnavailableError
from app.index.opening import Index
from app.models.capacity import CapacityQuery, GpuType
from app.models.heartbeat import Heartbeat, ResourceMetrics
from app.models.identity import StreamId
from tests.indexing import agent_id, apply_everything, heartbeat, index_settings, opened_index
from tests.servers import wait_until_async
from workers.ingest import Ingest

OF_AMD = ResourceMetrics(gpu_vram_available_gb=1.0, cpu_cores_available=4, gpu_type=GpuType.AMD)


@pytest.fixture
async def index(redis_url: str) -> AsyncIterator[Index]:
    async with opened_index(index_settings(redis_url)) as index:
        yield index


async def bodies(index: Index, reads: int = 1) -> list[object]:
    reader = index.index_reader()
    return [entry.body for _ in range(reads) for entry in await reader.read()]


async def test_entries_come_in_the_order_they_were_added(index: Index) -> None:
    beats = [heartbeat(n) for n in range(20)]
    stream_ids = await index.log.append(beats)
    assert stream_ids == sorted(stream_ids)
    assert await bodies(index) == beats


async def test_entries_not_acked_are_read_again_first(index: Index) -> None:
    reader = index.index_reader()
    await index.log.append([heartbeat(1)])
    first = await reader.read()
    await index.log.append([heartbeat(2)])
    assert await reader.read() == first
    await reader.ack([entry.stream_id for entry in first])
    second = await reader.read()
    assert [entry.body for entry in second] == [heartbeat(2)]


async def test_a_dead_consumers_entries_are_taken_over(index: Index) -> None:
    await index.log.append([heartbeat(1)])
    dead = index.index_reader()
    read = await dead.read()
    heir = index.index_reader()
    taken: list[object] = []

    async def took_over() -> bool:
        taken.extend(await heir.read())
        return bool(taken)

    await wait_until_async(took_over)
    assert taken == read


async def test_consumers_that_are_gone_are_forgotten_but_for_those_that_hold_entries(index: Index) -> None:
    client: Any = index.capacity._client
    group = ("headroom:heartbeats", "index")
    await index.log.append([heartbeat(1)])
    await index.index_reader().read()
    for name in ("gone", "gone too"):
        await client.xgroup_createconsumer(*group, name)
    await client.xgroup_createconsumer("headroom:heartbeats", "record", "gone")
    (holding,) = [one for one in await client.xinfo_consumers(*group) if one["pending"]]
    assert await index.stream.forget_consumers() == 0
    assert await index.stream.forget_consumers(idle_s=0) == 3
    assert [one["name"] for one in await client.xinfo_consumers(*group)] == [holding["name"]]
    await client.flushall()
    assert await index.stream.forget_consumers(idle_s=0) == 0


async def test_a_flush_is_treated_as_a_missing_group(index: Index) -> None:
    reader = index.index_reader()
    blocked = asyncio.create_task(reader.read())
    await asyncio.sleep(0)
    await index.capacity._client.flushall()
    await blocked
    await index.log.append([heartbeat(1)])
    found: list[object] = []

    async def read_something() -> bool:
        found.extend(entry.body for entry in await reader.read())
        return bool(found)

    await wait_until_async(read_something)
    assert found == [heartbeat(1)]


async def test_a_poison_entry_is_set_aside_and_the_rest_goes_on(index: Index) -> None:
    client: Any = index.capacity._client
    await index.log.append([heartbeat(1)])
    poison = await client.xadd(index.keys.heartbeats, {"heartbeat": b"\xc1 not msgpack"})
    strange = await client.xadd(index.keys.heartbeats, {"surprise": "1"})
    await index.log.append([heartbeat(2)])
    await apply_everything(index)
    assert await index.capacity.get(agent_id(1)) is not None
    assert await index.capacity.get(agent_id(2)) is not None
    letters = await client.xrange(index.keys.dead_letters)
    assert [fields[b"entry_id"] for _, fields in letters] == [poison, strange]
    assert letters[0][1][b"heartbeat"] == b"\xc1 not msgpack"
    assert letters[1][1][b"reason"] == b"unknown kind of entry"


async def test_an_entry_from_a_newer_wire_version_is_set_aside(index: Index) -> None:
    client: Any = index.capacity._client
    payload = msgspec.msgpack.encode({"v": 2, "heartbeat": {"future": True}})
    await client.xadd(index.keys.heartbeats, {"heartbeat": payload})
    await apply_everything(index)
    letters = await client.xrange(index.keys.dead_letters)
    assert b"wire version 2" in letters[0][1][b"reason"]


async def test_applied_entries_are_trimmed_only_below_the_slower_group(index: Index) -> None:
    client: Any = index.capacity._client
    beats = [heartbeat(n % 5, seq=n) for n in range(400)]
    await index.log.append(beats)
    await apply_everything(index)
    await index.stream.trim()
    assert await client.xlen(index.keys.heartbeats) >= 400
    recorder = index.record_reader()
    while entries := await recorder.read():
        await recorder.ack([entry.stream_id for entry in entries])
    await index.stream.trim()
    assert await client.xlen(index.keys.heartbeats) < 150


async def test_a_failed_apply_leaves_its_entries_pending(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest = Ingest(index.index_reader(), index.upkeep)
    await index.log.append([heartbeat(1)])

    async def fail(_beats: list[Heartbeat], **_options: bool) -> None:
        raise IndexUnavailableError

    with monkeypatch.context() as patched:
        patched.setattr(index.upkeep, "apply", fail)
        with pytest.raises(IndexUnavailableError):
            await ingest.run_once()
    assert await index.capacity.get(agent_id(1)) is None
    await ingest.run_once()
    assert await index.capacity.get(agent_id(1)) is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"pool_name": ""},
        {"agent_type": "a:b"},
        {"agent_id": "no-uuid"},
        {"seq": 3},
        {"resource_metrics": {"gpu_vram_available_gb": float("nan")}},
        {"resource_metrics": {"gpu_vram_available_gb": -1.0}},
        {"resource_metrics": {"cpu_cores_available": 65_537}},
    ],
)
async def test_an_entry_with_impossible_values_is_set_aside_before_anything_is_written(
    index: Index, changes: dict[str, Any]
) -> None:
    client: Any = index.capacity._client
    beat = msgspec.to_builtins(heartbeat(1)) | changes
    await client.xadd(index.keys.heartbeats, {"heartbeat": msgspec.msgpack.encode({"v": 1, "heartbeat": beat})})
    await apply_everything(index)
    assert await client.xlen(index.keys.dead_letters) == 1
    assert not await client.exists(index.keys.agent(agent_id(1)))


async def test_an_index_that_is_not_trusted_forgets_nobody(index: Index) -> None:
    await index.capacity._client.flushall()
    with pytest.raises(IndexRebuildingError):
        await index.capacity.forget(agent_id(1))
    with pytest.raises(IndexRebuildingError):
        await index.cordons.uncordon(agent_id(1))


async def test_a_filter_that_refuses_everybody_ends_its_page_in_bounded_time(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.index.lookup._MOST_SLICES", 2)
    await index.log.append([heartbeat(n, vram=8.0) for n in range(600)])
    await index.log.append([heartbeat(700, vram=1.0, resource_metrics=OF_AMD)])
    await apply_everything(index)
    # One that fell silent makes no difference.
    await index.upkeep.apply([(StreamId(1_700_000_000_000), heartbeat(701, vram=9.0))])
    query = CapacityQuery(gpu_type=GpuType.AMD, limit=10)
    pages = [await index.capacity.find(query)]
    while pages[-1].cursor is not None:
        pages.append(await index.capacity.find(msgspec.structs.replace(query, after=pages[-1].cursor)))
    assert len(pages) == 3
    assert [row.agent_id for page in pages for row in page.agents] == [agent_id(700)]


async def test_ingest_is_in_a_hurry_only_while_more_is_waiting(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened_index(index_settings(redis_url, ingest_batch=2)) as index:
        ingest = Ingest(index.index_reader(), index.upkeep)
        await index.log.append([heartbeat(number) for number in range(3)])
        apply, hurried = index.upkeep.apply, []

        async def watched(heartbeats: Any, *, behind: bool) -> Any:
            hurried.append((len(heartbeats), behind))
            return await apply(heartbeats, behind=behind)

        monkeypatch.setattr(index.upkeep, "apply", watched)
        # The agents' transitions are read after them.
        await apply_everything(index, ingest=ingest)
        await ingest.run_once()
        assert hurried[0] == (2, True)
        assert hurried[-1] == (0, False)
