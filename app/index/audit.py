"""Holds the index against itself: hashes, sorted sets, totals. In slices, on a live system."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, Final

import redis.asyncio as aredis
from redis.exceptions import ResponseError

from app.index.connect import unavailable
from app.index.execute import run
from app.index.keys import Keys
from app.index.placement import mib
from app.index.scripts import Call, load
from app.index.states import IndexedAgent
from app.models.capacity import AgentStatus, GpuType, Resources
from app.models.finding import Finding
from app.models.identity import AgentId, is_agent_id

_INSPECT_SLICE: Final = 8
_STRAYS_SLICE: Final = 100
_SCAN_SLICE: Final = 500
_SEARCHED: Final = re.compile(
    r":[a-z0-9-]+(:silent|:busy|:cordoned)?(:cores|:machines|(:pool:[^:]+)?:vram(:cores:[0-9]+(\+|-[0-9]+))?)"
)
"""What follows the prefix in the key of a set that searches read."""

_FIGURE: Final = re.compile(rb"[a-z0-9]+:[a-z0-9_]+")
_NUMBER: Final = re.compile(rb"0|-?[1-9][0-9]{0,17}")
"""As Redis writes them; to anything else it adds nothing."""

Totals = dict[str, dict[str, int]]


_BEYOND_REPAIR: Final = b"its hash lacks fields"
"""What the agent counted as is lost with them: only a rebuild brings the totals in line again."""


class IndexAudit:
    """Every call may raise IndexUnavailableError."""

    def __init__(self, client: aredis.Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    async def agent_ids(self) -> AsyncIterator[list[AgentId]]:
        """Every agent that has a hash, whatever sets it is in."""
        cursor, start = 0, self._keys.agent("")
        while True:
            with unavailable():
                found: Any = await self._client.scan(cursor, match=f"{start}*", count=_SCAN_SLICE)
            cursor, raw = found
            # A type of agents may be called "agent": its sets begin like this too.
            names = [key.decode().removeprefix(start) for key in raw]
            yield [AgentId(name) for name in names if is_agent_id(name)]
            if not cursor:
                return

    async def agents(self, agent_ids: Iterable[AgentId], *, repair: bool) -> list[Finding]:
        """Agents that do not stand where their hashes say."""
        findings: list[Finding] = []
        for part in _parts(agent_ids, _INSPECT_SLICE):
            reply = await self._run("inspect", int(repair), *part)
            findings += [
                Finding(
                    where="index",
                    subject=agent_id.decode(),
                    what=what.decode(),
                    repaired=repair and what != _BEYOND_REPAIR,
                )
                for agent_id, what in zip(reply[::2], reply[1::2], strict=True)
            ]
        return findings

    async def strays(self, *, repair: bool) -> AsyncIterator[Finding]:
        """Members of the sets that searches read which do not belong there."""
        async for key in self._sets():
            cursor = 0
            while True:
                with unavailable():
                    found: Any = await self._client.zscan(key, cursor, count=_STRAYS_SLICE)
                cursor, members = found
                for part in _parts((member for member, _ in members), _STRAYS_SLICE):
                    for stray in await self._run("strays", int(repair), key, *part):
                        what = f"stands in {key} without belonging there"
                        yield Finding(where="index", subject=stray.decode(), what=what, repaired=repair)
                if not cursor:
                    break

    async def damaged_totals(self, *, repair: bool) -> list[tuple[str, str | None]]:
        """Keys and fields to which no script can add anything, None for a key that is no hash at all.

        A repair takes them away; then all of them is missing.
        """
        damaged: list[tuple[str, str | None]] = []
        with unavailable():
            async for key in self._scan_totals():
                fields = await self._read_totals(key)
                if fields is None:
                    damaged.append((key.decode("utf-8", "replace"), None))
                    if repair:
                        await self._client.delete(key)
                    continue
                for field in [field for field, number in fields.items() if not _is_total(field, number)]:
                    damaged.append((key.decode("utf-8", "replace"), field.decode("utf-8", "replace")))
                    if repair:
                        await self._client.hdel(key, field)
        return damaged

    async def totals(self) -> Totals:
        """The totals as they stand in Redis, by key, without zeros and what is damaged."""
        totals: Totals = {}
        with unavailable():
            async for raw in self._scan_totals():
                fields = await self._read_totals(raw) or {}
                numbers = {
                    field.decode(): int(number)
                    for field, number in fields.items()
                    if _is_total(field, number) and int(number)
                }
                if numbers:
                    totals[raw.decode()] = numbers
        return totals

    def _scan_totals(self) -> AsyncIterator[bytes]:
        keys: AsyncIterator[bytes] = self._client.scan_iter(match=f"{self._keys.prefix}:*:totals:*", count=500)
        return keys

    async def _read_totals(self, key: bytes) -> dict[bytes, bytes] | None:
        """None where somebody put something else there."""
        try:
            fields: dict[bytes, bytes] = await self._client.hgetall(key)  # type: ignore[assignment]  # not decoded
        except ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            return None
        return fields

    async def correct_totals(self, differences: Totals) -> None:
        """Adds what is missing, takes away what is too much; changes made meanwhile stay counted."""
        with unavailable():
            for key, fields in differences.items():
                for field, missing in fields.items():
                    await self._client.hincrby(key, field, missing)

    async def _sets(self) -> AsyncIterator[str]:
        with unavailable():
            async for raw in self._client.scan_iter(match=f"{self._keys.prefix}:*", count=500, _type="zset"):
                key = raw.decode()
                if _SEARCHED.fullmatch(key.removeprefix(self._keys.prefix)):
                    yield key

    async def _run(self, script: str, *arguments: Any) -> list[Any]:
        with unavailable():
            reply: list[Any] = await run(self._client, Call(load(script), self._keys.prefix, ("", *arguments)))
        return reply


class TotalsCount:
    """Adds up agents as the scripts do, for comparison."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._totals: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))

    def add(self, agent: IndexedAgent) -> None:
        heartbeat = agent.heartbeat
        resources = Resources.of(heartbeat.metrics)
        gpu = resources.gpu_type if heartbeat.metrics is not None else GpuType.NONE
        figures = {agent.status.value: 1, "cordoned": int(agent.cordon is not None)}
        if agent.status is not AgentStatus.OFFLINE:
            figures["vram_total_mib"] = mib(resources.gpu_vram_total_gb)
            figures["cores_physical"] = resources.cpu_cores_physical
        vram, _, rest = agent.indexed.partition(" ")
        cores, _, scope = rest.partition(" ")
        if vram and ":" not in scope.split(" ")[0]:
            figures |= {"placeable": 1, "vram_available_mib": mib(float(vram)), "cores_available": int(cores)}
        for key in (
            self._keys.totals(heartbeat.agent_type, heartbeat.pool_name),
            self._keys.all_totals(heartbeat.agent_type),
        ):
            for figure, number in figures.items():
                self._totals[key][f"{gpu.value}:{figure}"] += number

    def missing_from(self, found: Totals) -> Totals:
        """By key and field, what would have to be added to what was found."""
        missing: Totals = {}
        for key in self._totals.keys() | found.keys():
            counted, stands = self._totals.get(key, {}), found.get(key, {})
            fields = {
                field: counted.get(field, 0) - stands.get(field, 0) for field in counted.keys() | stands.keys()
            }
            if wrong := {field: number for field, number in fields.items() if number}:
                missing[key] = wrong
        return missing


def _is_total(field: bytes, number: bytes) -> bool:
    return _FIGURE.fullmatch(field) is not None and _NUMBER.fullmatch(number) is not None


def _parts(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    part: list[Any] = []
    for item in items:
        part.append(item)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part
