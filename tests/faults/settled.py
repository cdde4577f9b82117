"""What must hold after every run, once quiet: index = hashes = record, and every agent shows what it last said.

Written against the keys and tables as docs/data-model.md describes them, not with the code under test.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
import redis.asyncio as aredis
from sqlalchemy import text

from app.index.keys import Keys, encode_pool
from app.models.agent import RecordedState
from app.models.capacity import AgentStatus, Resources
from app.models.identity import AgentId, StreamId
from app.models.ladder import memberships
from app.models.order import Boot
from app.record import Record
from tests.faults.fleet import Reporter, Sent

KEYS: Final = Keys()
_GROUPS: Final = ("index", "record")

Hash = Mapping[str, str]


async def unsettled(client: aredis.Redis) -> str:
    """Why it is not quiet yet; empty when both groups have processed everything there is."""
    try:
        groups = {group["name"].decode(): group for group in await client.xinfo_groups(KEYS.heartbeats)}
    except aredis.ResponseError:
        return "there is no stream"
    for name in _GROUPS:
        if name not in groups:
            return f"there is no group {name}"
        group = groups[name]
        if group["pending"]:
            return f"{group['pending']} entries are pending in group {name}"
        after = group["last-delivered-id"].decode()
        if await client.xrange(KEYS.heartbeats, f"({after}", "+", count=1):
            return f"group {name} has entries to read"
    if await client.exists(KEYS.gap):
        return "there is a gap to reconcile"
    if await client.zcard(KEYS.silent):
        return "silent agents are to be declared offline"
    return "" if await client.exists(KEYS.epoch) else "there is no epoch"


async def unapplied(client: aredis.Redis) -> bool:
    """Whether anything in the log has yet to be applied to the index."""
    try:
        groups = {group["name"]: group for group in await client.xinfo_groups(KEYS.heartbeats)}
    except aredis.ResponseError:
        return True
    group = groups.get(b"index")
    if group is None or group["pending"]:
        return True
    after = group["last-delivered-id"].decode()
    return bool(await client.xrange(KEYS.heartbeats, f"({after}", "+", count=1))


async def overtakes(client: aredis.Redis, reporter: Reporter, sent: Sent) -> bool:
    """Whether the heartbeat, sent once more now, may be applied before newer ones that a dead worker had read."""
    newest = reporter.acknowledged
    first, last = "-", "+"
    if newest is not None and newest[0].boot_id == sent.boot_id:
        first = last = str(newest[1])
    try:
        left = [await client.xpending_range(KEYS.heartbeats, group, first, last, 1) for group in _GROUPS]
    except aredis.ResponseError:
        return False
    return any(left)


async def differences(
    client: aredis.Redis, record: Record, reporters: Iterable[Reporter] = (), *, events: bool = True
) -> list[str]:
    """Everything that is wrong, one sentence each.

    Args:
        client: does not decode its replies.
        record: of the same fleet.
        reporters: agents that know what was acknowledged.
        events: whether every transition must have been recorded.
    """
    hashes = await _hashes(client)
    recorded = {
        state.agent.agent_id: state async for page in record.reader.states(page_size=500) for state in page
    }
    wrong = [f"{one}: in the index, not in the record" for one in sorted(hashes.keys() - recorded.keys())]
    wrong += [f"{one}: in the record, not in the index" for one in sorted(recorded.keys() - hashes.keys())]
    for agent_id in sorted(hashes.keys() & recorded.keys()):
        wrong += [f"{agent_id}: {what}" for what in _hash_against_record(hashes[agent_id], recorded[agent_id])]
    wrong += await _sets_against_hashes(client, hashes)
    wrong += await _totals_against_hashes(client, hashes)
    if events:
        wrong += await _events_against_record(record, recorded)
    for reporter in reporters:
        wrong += [f"{reporter.agent_id}: {what}" for what in _against_reporter(hashes, reporter)]
    return wrong


async def _hashes(client: aredis.Redis) -> dict[AgentId, Hash]:
    """Every agent that is not a tombstone."""
    prefix = KEYS.agent("")
    found: dict[AgentId, Hash] = {}
    async for key in client.scan_iter(match=f"{prefix}*", count=500):
        raw: Any = await client.hgetall(key)
        fields = {name.decode(): value.decode() for name, value in raw.items()}
        if "status" in fields:
            found[AgentId(key.decode().removeprefix(prefix))] = fields
    return found


def _hash_against_record(fields: Hash, recorded: RecordedState) -> list[str]:
    agent, order = recorded.agent, recorded.order
    holder = order.holder
    resources = Resources.of(agent.resource_metrics)
    expected = {
        "last_id": str(order.last_id),
        "boot_id": "" if holder is None else holder.boot_id,
        "seq": "" if holder is None else str(holder.seq),
        "status": agent.status.value,
        "agent_type": agent.agent_type,
        "pool_name": agent.pool_name,
        "hostname": agent.hostname,
        "has_metrics": str(int(agent.resource_metrics is not None)),
        **{name: str(value) for name, value in msgspec.structs.asdict(resources).items()},
    }
    return [
        *(
            f"{name} is {fields.get(name, '')!r} in the hash and {value!r} in the record"
            for name, value in expected.items()
            if fields.get(name, "") != value
        ),
        *_boots_against_record(fields["boots"], order.retired),
    ]


def _boots_against_record(boots: str, recorded: Sequence[Boot]) -> list[str]:
    """Of the earlier boots that both remember: of one whose entries all came late a store knows nothing."""
    lines = [line.partition(" ") for line in boots.splitlines()]
    seqs = {boot_id: int(seq) for seq, _, boot_id in lines}
    return [
        f"{boot.boot_id} came to {seqs[boot.boot_id]} in the hash and to {boot.seq} in the record"
        for boot in recorded
        if seqs.get(boot.boot_id, boot.seq) != boot.seq
    ]


async def _sets_against_hashes(client: aredis.Redis, hashes: Mapping[AgentId, Hash]) -> list[str]:
    actual: dict[str, dict[str, float]] = {}
    async for key in client.scan_iter(match=f"{KEYS.prefix}:*", count=500, _type="zset"):
        members: Any = await client.zrange(key, 0, -1, withscores=True)
        actual[key.decode()] = {member.decode(): score for member, score in members}
    by_liveness = {name: actual.get(f"{KEYS.prefix}:{name}", {}) for name in ("seen", "silent", "offline")}
    wrong: list[str] = []
    expected: dict[str, dict[str, float]] = {}
    for agent_id, fields in hashes.items():
        stands_in = [name for name, members in by_liveness.items() if agent_id in members]
        silent = agent_id in by_liveness["silent"]
        wanted = "offline" if fields["status"] == AgentStatus.OFFLINE else "silent" if silent else "seen"
        if stands_in != [wanted]:
            wrong.append(f"{agent_id}: is {fields['status']} and stands in {stands_in}")
        if fields["has_metrics"] == "1":
            for key, score in _scores(fields, silent=silent).items():
                expected.setdefault(key, {})[agent_id] = score
    wrong += [
        f"{sorted(members.keys() - hashes.keys())}: in {name}, and have no hash"
        for name, members in by_liveness.items()
        if not members.keys() <= hashes.keys()
    ]
    placed = {key: members for key, members in actual.items() if ":vram" in key or key.endswith(":cores")}
    wrong += [
        f"{key} holds {_apart(placed.get(key, {}), expected.get(key, {}))}"
        for key in sorted(placed.keys() | expected.keys())
        if placed.get(key, {}) != expected.get(key, {})
    ]
    return wrong


def _scope(fields: Hash, *, silent: bool) -> str:
    """The family of sets that an agent with metrics stands in: its type's own if searches find it."""
    hidden = {
        "silent": silent or fields["status"] == AgentStatus.OFFLINE,
        "cordoned": fields.get("cordon", "") != "",
        "busy": fields["status"] == AgentStatus.BUSY,
    }
    return ":".join([fields["agent_type"], *[state for state, holds in hidden.items() if holds][:1]])


def _scores(fields: Hash, *, silent: bool) -> dict[str, float]:
    """The sets in which an agent with metrics stands, with its scores."""
    vram, cores = float(fields["gpu_vram_available_gb"]), int(fields["cpu_cores_available"])
    scope = _scope(fields, silent=silent)
    pool = f"{scope}:pool:{encode_pool(fields['pool_name'])}"
    scores = {f"{scope}:vram": vram, f"{scope}:cores": float(cores), f"{pool}:vram": vram}
    for name in memberships(cores):
        scores |= {f"{scope}:vram:cores:{name}": vram, f"{pool}:vram:cores:{name}": vram}
    return {f"{KEYS.prefix}:{key}": score for key, score in scores.items()}


async def _totals_against_hashes(client: aredis.Redis, hashes: Mapping[AgentId, Hash]) -> list[str]:
    """Only what is not zero: a total that came down to zero may stay."""
    members: Any = await client.zrange(KEYS.silent, 0, -1)
    silent = {member.decode() for member in members}
    expected: dict[str, Counter[str]] = {}
    for agent_id, fields in hashes.items():
        gpu, status = fields["gpu_type"], fields["status"]
        heard = status != AgentStatus.OFFLINE
        free = fields["indexed"] != "" and _scope(fields, silent=agent_id in silent) == fields["agent_type"]
        added = {
            f"{gpu}:{status}": 1,
            f"{gpu}:cordoned": int(bool(fields.get("cordon"))),
            f"{gpu}:vram_total_mib": heard * _mib(fields["gpu_vram_total_gb"]),
            f"{gpu}:cores_physical": heard * int(fields["cpu_cores_physical"]),
            f"{gpu}:placeable": int(free),
            f"{gpu}:vram_available_mib": free * _mib(fields["gpu_vram_available_gb"]),
            f"{gpu}:cores_available": free * int(fields["cpu_cores_available"]),
        }
        for pool in (encode_pool(fields["pool_name"]), "*"):
            key = f"{KEYS.prefix}:{fields['agent_type']}:totals:{pool}"
            expected.setdefault(key, Counter()).update(added)
    actual = {}
    async for key in client.scan_iter(match=f"{KEYS.prefix}:*:totals:*", count=500):
        values: Any = await client.hgetall(key)
        actual[key.decode()] = {name.decode(): int(value) for name, value in values.items() if int(value)}
    return [
        f"{key} says {actual.get(key, {})}, which adds up to {dict(+expected.get(key, Counter()))}"
        for key in sorted(actual.keys() | expected.keys())
        if actual.get(key, {}) != +expected.get(key, Counter())
    ]


def _mib(gb: str) -> int:
    return math.floor(float(gb) * 1024 + 0.5)


def _apart(actual: Mapping[str, float], expected: Mapping[str, float]) -> str:
    apart = {
        member: (actual.get(member), expected.get(member))
        for member in sorted(actual.keys() | expected.keys())
        if actual.get(member) != expected.get(member)
    }
    return ", ".join(f"{member} at {found}, not {wanted}" for member, (found, wanted) in apart.items())


async def _events_against_record(record: Record, recorded: Mapping[AgentId, RecordedState]) -> list[str]:
    """The chain of each agent: every event starts from what the one before led to, and the last one holds."""
    async with record.database.reading() as connection:
        rows = await connection.execute(
            text(
                "SELECT CAST(agent_id AS varchar(36)) AS agent_id, from_status, to_status FROM agent_events "
                "WHERE to_status NOT IN ('cordoned', 'uncordoned') ORDER BY agent_id, entry_ms, entry_n"
            )
        )
        events: dict[str, list[Any]] = {}
        for row in rows:
            events.setdefault(row.agent_id, []).append(row)
    wrong = []
    for agent_id, state in recorded.items():
        chain = events.get(agent_id, [])
        came_from = [None, *(event.to_status for event in chain)]
        if [event.from_status for event in chain] != came_from[:-1]:
            wrong.append(f"{agent_id}: its events do not follow from one another")
        if chain and came_from[-1] != state.agent.status.value:
            wrong.append(f"{agent_id}: its last event is {came_from[-1]}, its status {state.agent.status.value}")
    return wrong


def _against_reporter(hashes: Mapping[AgentId, Hash], reporter: Reporter) -> list[str]:
    """Shows the last acknowledged heartbeat, or one sent later whose acknowledgement was lost."""
    if reporter.acknowledged is None:
        return []
    beat, stream_id = reporter.acknowledged
    fields = hashes.get(reporter.agent_id)
    if fields is None:
        return [f"acknowledged {stream_id}, and is unknown"]
    shown = Sent(fields["boot_id"], int(fields["seq"]))
    if shown not in reporter.sent:
        return [f"shows {shown}, which it never sent"]
    superseded = shown.boot_id == beat.boot_id and shown.seq >= beat.seq
    if StreamId.parse(fields["last_id"]) < stream_id and not superseded:
        return [f"shows {shown} of {fields['last_id']}, acknowledged was {beat} as {stream_id}"]
    if shown.boot_id == beat.boot_id and shown.seq < beat.seq:
        return [f"shows {shown}, acknowledged was {beat}"]
    told = (float(fields["gpu_vram_available_gb"]), int(fields["cpu_cores_available"]))
    return [] if told == (shown.vram, shown.cores) else [f"shows {told} for {shown}"]
