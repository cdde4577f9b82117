"""docs/data-model.md names every key and field that a server holds after everything has happened once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import redis

from app.index.clock import ManualClock
from app.index.opening import Index
from app.models.capacity import AgentStatus
from app.models.heartbeat import Gpu
from tests.indexing import agent_id, apply_everything, heartbeat, index_settings, opened_index

TEXT = (Path(__file__).parents[2] / "docs" / "data-model.md").read_text(encoding="utf-8")
LADDER = re.compile(r"[0-9]+\+|[0-9]+-[0-9]+")


def documented(heading: str) -> set[str]:
    """The names in the first column of the first table below a heading."""
    section = TEXT.partition(f"{heading}\n")[2].partition("\n#")[0]
    cells = re.findall(r"^\| (`.+?`) \| ", section, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def as_documented(key: str) -> str:
    """The key as the page writes it: placeholders, one rung for all rungs and one band for all bands."""
    if key.startswith("headroom:agent:"):
        return "headroom:agent:<uuid>"
    if key.startswith("headroom:lease:"):
        return "headroom:lease:<duty>"
    match key.split(":"):
        case [prefix, _, "pool", _, "vram", "cores", name] if LADDER.fullmatch(name):
            return f"{prefix}:<type>:pool:<pool>:vram:cores:8+"
        case [prefix, _, "vram", "cores", name] if LADDER.fullmatch(name):
            return f"{prefix}:<type>:vram:cores:{'8+' if name.endswith('+') else '12-15'}"
        case [prefix, _, ("vram" | "cores") as last]:
            return f"{prefix}:<type>:{last}"
    return key


async def everything_once(index: Index, clock: ManualClock, client: Any) -> None:
    full = heartbeat(
        1, cores=13, boot_id="a", seq=1, hostname="one", pool_name="a pool", gpus=(Gpu(index=0, name="GPU"),)
    )
    await index.log.append([full, heartbeat(2), heartbeat(3, status=AgentStatus.OFFLINE), heartbeat(4)])
    await apply_everything(index)
    await index.log.append([msgspec.structs.replace(full, boot_id="b", seq=1)])
    await index.log.append([msgspec.structs.replace(full, boot_id="a", seq=2)])
    await apply_everything(index)
    assert await index.capacity.forget(agent_id(4)) is not None
    for seq, status in enumerate([AgentStatus.BUSY, AgentStatus.ONLINE, AgentStatus.BUSY], start=2):
        await index.log.append([msgspec.structs.replace(full, boot_id="b", seq=seq, status=status)])
    await apply_everything(index)
    clock.advance(60)
    await index.log.append([msgspec.structs.replace(full, boot_id="b", seq=5)])
    await apply_everything(index)
    clock.advance(60)
    assert await index.upkeep.sweep() == 1
    assert await index.upkeep.note_jump(5_000)
    await index.upkeep.receive("me", gap_s=10)
    assert await index.upkeep.lease("reaper", "me", ttl_s=60)
    client.xadd(index.keys.heartbeats, {"heartbeat": "broken"}, id=f"{clock.now_ms()}-*")
    await apply_everything(index)
    await index.upkeep.begin_rebuild("marker", None)


async def test_every_key_and_field_is_documented(redis_url: str) -> None:
    clock = ManualClock(1_800_000_000_000)
    client: Any = redis.Redis.from_url(redis_url, decode_responses=True, encoding_errors="replace")
    with client:
        async with opened_index(index_settings(redis_url), clock=clock) as index:
            await everything_once(index, clock, client)
        keys = {as_documented(key) for key in client.keys("*")}
        fields = set(client.hkeys(index.keys.agent(agent_id(1))))
        entries = {field for _, entry in client.xrange(index.keys.heartbeats) for field in entry}
        dead = {field for _, entry in client.xrange(index.keys.dead_letters) for field in entry}

    assert keys == documented("## Redis")
    assert fields == documented("### The hash of an agent")
    assert entries == documented("### Entries of the stream")
    assert dead == {"heartbeat", "entry_id", "group", "reason"}
