"""docs/data-model.md names every key and field that a server holds after everything has happened once."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import redis

from app.index.clock import ManualClock
from app.index.opening import Index
from app.models.capacity import AgentStatus
from app.models.cordon import Cordon
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
    match key.split(":"):
        case [prefix, ("agent" | "lease") as kind, _]:
            return f"{prefix}:{kind}:{'<uuid>' if kind == 'agent' else '<duty>'}"
        case [prefix, "memory-wanted", _]:
            return f"{prefix}:memory-wanted:<slot>"
        case [prefix, _, ("silent" | "cordoned" | "busy"), *rest]:
            assert as_documented(":".join([prefix, "desktop", *rest])) in documented("## Redis")
            return f"{prefix}:<type>:<state>:…"
        case [prefix, _, "totals", pool]:
            return f"{prefix}:<type>:totals:{'*' if pool == '*' else '<pool>'}"
        case [prefix, _, "pool", _, *rest]:
            return ":".join([prefix, "<type>:pool:<pool>", *_rungs(rest)]).replace("12-15", "8+")
        case [prefix, _, *rest] if rest:
            return ":".join([prefix, "<type>", *_rungs(rest)])
    return key


def _rungs(parts: list[str]) -> list[str]:
    if len(parts) == 3 and LADDER.fullmatch(parts[2]):
        return [*parts[:2], "8+" if parts[2].endswith("+") else "12-15"]
    return parts


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
    since = datetime(2027, 1, 15, tzinfo=UTC)
    cordon = Cordon(reason="repair", actor="me", since=since, expires_at=None)
    assert await index.cordons.cordon(agent_id(1), cordon) is not None
    await apply_everything(index)
    clock.advance(60)
    assert await index.upkeep.sweep() == 1
    await index.log.append([heartbeat(5, cores=13, pool_name="a pool")])
    assert await index.upkeep.note_jump(5_000)
    await index.upkeep.receive("me", gap_s=10)
    await index.feed().want_memory([16.0])
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

    # A gap needs a stream that outgrew its bound; tests/unit/test_docs.py sees that its key is named.
    assert keys | {index.keys.gap} == documented("## Redis")
    assert fields == documented("### The hash of an agent")
    assert entries == documented("### Entries of the stream")
    assert dead == {"heartbeat", "entry_id", "group", "reason"}
