"""Recomputes the whole index from the agents' hashes and compares it, key by key, with what is there."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from app.index.opening import Index
from app.models.ladder import memberships

SKIPPED = {
    "heartbeats",
    "dead-letters",
    "epoch",
    "clock",
    "gap",
    "grace",
    "receivers",
    "cloned",
    "flapping",
    "events",
}

AGENT = re.compile("agent:[0-9a-f-]{36}")
"""A hash of an agent, not a key of a type of agents that is called "agent"."""

LIVENESS = {"seen", "silent", "offline", "cordons"}


async def assert_index_consistent(index: Index) -> None:
    """Sets, totals, shapes and feed all say what the hashes say."""
    hashes = await read_hashes(index)
    found = await read_keys(index)
    expected = expected_keys(hashes)
    assert found == expected
    await _assert_liveness_consistent(index, hashes)
    assert await replayed_feed(index) == {
        agent_id: tuple(fields["indexed"].split(" ")[:2])
        for agent_id, fields in hashes.items()
        if fields.get("indexed") and ":" not in fields["indexed"].split(" ")[2]
    }


async def _assert_liveness_consistent(index: Index, hashes: dict[str, dict[str, str]]) -> None:
    client: Any = index.capacity._client

    async def members(key: str) -> set[str]:
        return {member.decode() for member in await client.zrange(key, 0, -1)}

    seen, silent, offline = [
        await members(key) for key in (index.keys.seen, index.keys.silent, index.keys.offline)
    ]
    assert offline == {agent_id for agent_id, fields in hashes.items() if fields["status"] == "offline"}
    assert seen | silent == hashes.keys() - offline
    assert not seen & silent
    for agent_id, fields in hashes.items():
        if fields["indexed"]:
            assert (agent_id in silent | offline) == fields["indexed"].split(" ")[2].endswith(":silent")
    assert await members(index.keys.cordons) == {
        agent_id for agent_id, fields in hashes.items() if fields.get("cordon")
    }


async def read_hashes(index: Index) -> dict[str, dict[str, str]]:
    client: Any = index.capacity._client
    prefix = index.keys.agent("")
    hashes = {}
    async for key in client.scan_iter(match=f"{prefix}{'?' * 36}", count=500, _type="hash"):
        fields = {name.decode(): value.decode() for name, value in (await client.hgetall(key)).items()}
        if "status" in fields:
            hashes[key.decode().removeprefix(prefix)] = fields
    return hashes


async def read_keys(index: Index) -> dict[str, dict[str, float]]:
    """Every set and every hash of numbers but the agents' own."""
    client: Any = index.capacity._client
    found: dict[str, dict[str, float]] = {}
    async for raw in client.scan_iter(match=f"{index.keys.prefix}:*", count=500):
        key = raw.decode()
        name = key.removeprefix(f"{index.keys.prefix}:")
        if name in SKIPPED | LIVENESS or name.startswith(("lease:", "memory-wanted:")) or AGENT.fullmatch(name):
            continue
        kind = await client.type(key)
        if kind == b"string":
            continue
        if kind == b"zset":
            found[name] = {
                member.decode(): score for member, score in await client.zrange(key, 0, -1, withscores=True)
            }
        else:
            assert kind == b"hash", key
            numbers = {field.decode(): float(value) for field, value in (await client.hgetall(key)).items()}
            # A total that came back to nothing stays as a zero.
            found[name] = {field: value for field, value in numbers.items() if value}
    return {name: members for name, members in found.items() if members}


def expected_keys(hashes: dict[str, dict[str, str]]) -> dict[str, dict[str, float]]:
    sets: dict[str, dict[str, float]] = defaultdict(dict)
    counts: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for agent_id, fields in hashes.items():
        agent_type, pool, gpu, total, physical = fields["machine"].split(" ")
        status, cordoned = fields["status"], bool(fields.get("cordon"))
        totals: dict[str, float] = defaultdict(float)
        if fields["indexed"]:
            vram, cores, scope, in_pool = fields["indexed"].split(" ")
            suffix = "" if scope == agent_type else scope.removeprefix(agent_type)
            if suffix != ":silent" or status == "offline":
                expected = {"offline": ":silent", "busy": ":busy", "online": ""}[status]
                assert suffix == (":cordoned" if cordoned and status != "offline" else expected)
            assert in_pool == pool
            sets[f"{scope}:cores"][agent_id] = float(cores)
            for by_vram in (f"{scope}:vram", f"{scope}:pool:{pool}:vram"):
                sets[by_vram][agent_id] = float(vram)
                for name in memberships(int(cores)):
                    sets[f"{by_vram}:cores:{name}"][agent_id] = float(vram)
            if not suffix:
                sets[f"{agent_type}:machines"][f"{total} {physical} {gpu} {pool} {agent_id}"] = 0.0
                totals[f"{gpu}:placeable"] += 1
                totals[f"{gpu}:vram_available_mib"] += int(float(vram) * 1024 + 0.5)
                totals[f"{gpu}:cores_available"] += int(cores)
        totals[f"{gpu}:{status}"] += 1
        totals[f"{gpu}:cordoned"] += cordoned
        if status != "offline":
            totals[f"{gpu}:vram_total_mib"] += int(float(total) * 1024 + 0.5)
            totals[f"{gpu}:cores_physical"] += int(physical)
        for scope in (pool, "*"):
            for field, amount in totals.items():
                counts[f"{agent_type}:totals:{scope}"][field] += amount
        shape = f"{total} {physical} {gpu}"
        counts["types"][agent_type] += 1
        sets[f"{agent_type}:pools"][pool] = sets[f"{agent_type}:pools"].get(pool, 0.0) + 1
        counts[f"{agent_type}:shapes"][shape] += 1
        counts[f"{agent_type}:pool:{pool}:shapes"][shape] += 1
    nonzero = {key: {field: n for field, n in numbers.items() if n} for key, numbers in counts.items()}
    return {**sets, **{key: numbers for key, numbers in nonzero.items() if numbers}}


async def replayed_feed(index: Index) -> dict[str, tuple[str, ...]]:
    """The placeable agents with their figures, as somebody knows them who only ever read the feed."""
    client: Any = index.capacity._client
    model: dict[str, tuple[str, ...]] = {}
    for _, raw in await client.xrange(index.keys.events):
        entry = {name.decode(): value.decode() for name, value in raw.items()}
        if entry["kind"] == "reset":
            model.clear()
        elif entry["kind"] != "rebuild":
            if entry["figures"]:
                model[entry["agent_id"]] = tuple(entry["figures"].split(" "))
            else:
                model.pop(entry["agent_id"], None)
    return model
