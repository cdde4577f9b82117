"""Everything that changes the index, in bounded slices: apply, sweep, declare, expire, restore, leases."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, TypeVar

import msgspec
import redis.asyncio as aredis
from redis.exceptions import ResponseError

from app.errors import UndecodableEntryError
from app.index.clock import IndexClock
from app.index.connect import command, is_not_now, unavailable
from app.index.epoch import Epoch, EpochGuard
from app.index.execute import Pace, run, run_few_at_a_time
from app.index.keys import GROUP_INDEX, GROUP_RECORD, LAYOUT, Keys
from app.index.lookup import SWEEP_SLICE, sweep_call
from app.index.placement import apply_arguments, restore_arguments
from app.index.scripts import Argument, Call, library, load
from app.index.stream import ensure_group, newest_id
from app.models.agent import RecordedState
from app.models.capacity import Resources
from app.models.heartbeat import Heartbeat
from app.models.identity import StreamId
from app.models.order import Outcome
from app.telemetry import logger

_log = logger(__name__)

T = TypeVar("T")

_MARKS_KEPT_MS: Final = 86_400_000

_QUIET_S: Final = 60.0

APPLY_SLICE: Final = 8
"""Heartbeats per script call: about a millisecond of Redis's time when every value of every agent changed."""

_LEAST_ALONE: Final = 4
"""Script calls sent together during a rebuild, at least."""

BRAKED_FLEET: Final = 100
"""Fleets larger than this have a brake: when most is silent at once, few are declared offline at a time."""

BRAKE_SHARE: Final = 600
"""The brake lets one in this many through at a time: at a sweep a second, ten minutes for a whole fleet."""

RECEIVING_GAP_MS: Final = 15_000
"""Longest pause between two signs of life of those who take heartbeats in; they give one every 5 s."""

JUMP_TOLERANCE_MS: Final = 2_000
"""How far the server's clock may drift from a steady one between two looks without having been set."""


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """What one slice of declaring silent agents offline did."""

    agents: int
    more: bool
    braked: bool


class Expired(msgspec.Struct, frozen=True, kw_only=True):
    """What one slice of dropping agents did; those that are cordoned stay."""

    dropped: int
    kept: int

    @property
    def more(self) -> bool:
        return self.dropped + self.kept == SWEEP_SLICE


class Upkeep:
    """The workers' side of the index of one shard. Every call may raise IndexUnavailableError."""

    def __init__(
        self,
        client: aredis.Redis,
        keys: Keys,
        epochs: EpochGuard,
        clock: IndexClock,
        *,
        offline_after_s: float,
        forget_after_d: float,
    ) -> None:
        self._client = client
        self._keys = keys
        self._epochs = epochs
        self._clock = clock
        self._offline_after_ms = round(offline_after_s * 1000)
        self._forget_after_ms = round(forget_after_d * 86_400_000)
        self._applying = Pace()
        self._quiet_until_s = 0.0

    async def apply(
        self, heartbeats: Sequence[tuple[StreamId, Heartbeat]], *, behind: bool = False
    ) -> list[Outcome | UndecodableEntryError]:
        """Applies heartbeats in the order given. Repeating it changes nothing.

        Args:
            heartbeats: with the ids of their entries.
            behind: more are waiting, so that Redis gets the next before it is done with the last.

        Returns:
            What became of each; an error where the state of its agent is not what it could be applied to.

        Raises:
            ResponseError: Redis does not let this user write, for example.
        """
        calls = (
            self._call("apply", self._offline_after_ms, *(a for one in part for a in apply_arguments(*one)))
            for part in _slices(heartbeats, APPLY_SLICE)
        )
        with unavailable():
            replies = await run_few_at_a_time(self._client, calls, self._applying, ahead=behind)
        self._complain(fault for _, fault in replies if fault is not None)
        return [_outcome(outcome) for outcomes, _ in replies for outcome in outcomes]

    def _complain(self, faults: Iterator[ResponseError]) -> None:
        """Whoever damaged totals must hear of it, though no heartbeat waits for them."""
        fault = next(faults, None)
        # Every call meets it until it is mended.
        if fault is not None and time.monotonic() >= self._quiet_until_s:
            self._quiet_until_s = time.monotonic() + _QUIET_S
            _log.error("Totals cannot be written; headroom audit --repair mends those of pools", reason=str(fault))

    async def sweep(self) -> int:
        """Takes one slice of silent agents out of the sets; returns how many, SWEEP_SLICE: maybe more."""
        with unavailable():
            return int(
                await run(self._client, sweep_call(self._keys, self._clock.now_ms(), self._offline_after_ms))
            )

    async def declare(self) -> Declared:
        """Declares one slice of the agents taken out offline; few under the brake, none during a grace or while
        nobody takes heartbeats in.
        """
        call = self._call("declare", SWEEP_SLICE, BRAKED_FLEET, BRAKE_SHARE, RECEIVING_GAP_MS)
        with unavailable():
            agents, more, braked = await run(self._client, call)
        return Declared(agents=agents, more=bool(more), braked=bool(braked))

    async def expire(self, *, skip: int = 0) -> Expired:
        """Drops one slice of agents that have been offline for too long, passing over `skip` of them."""
        with unavailable():
            call = self._call("expire", self._forget_after_ms, SWEEP_SLICE, skip)
            dropped, kept = await run(self._client, call)
        return Expired(dropped=dropped, kept=kept)

    async def lease(self, duty: str, holder: str, *, ttl_s: float) -> bool:
        """Takes or keeps the lease on a duty; `ttl_s` 0 gives it back. Returns whether the caller holds it."""
        with unavailable():
            return bool(await run(self._client, self._call("lease", duty, holder, round(ttl_s * 1000))))

    async def current_epoch(self) -> Epoch | None:
        """The epoch in force, None when a rebuild is due."""
        with unavailable():
            return await self._epochs.current()

    async def forget_marks(self) -> None:
        """Drops who was flapping or cloned a day ago."""
        before = await self.now_ms() - _MARKS_KEPT_MS
        with unavailable():
            for key in (self._keys.flapping, self._keys.cloned):
                await self._client.zremrangebyscore(key, "-inf", before)

    async def expire_cordons(self) -> int:
        """Lifts one slice of the cordons whose time is up, none while the time says little; SWEEP_SLICE: maybe
        more.
        """
        with unavailable():
            due = await run(self._client, self._call("due_cordons", SWEEP_SLICE, RECEIVING_GAP_MS))
            for agent_id in due:
                await run(self._client, self._call("cordon", agent_id, "", "", "1"))
            return len(due)

    async def now_ms(self) -> int:
        """The time that the scripts count with."""
        injected = self._clock.now_ms()
        if injected is not None:
            return injected
        with unavailable():
            seconds, micros = await self._client.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def steady_ms(self) -> int:
        """A clock that nobody sets, to hold the server's against."""
        return self._clock.steady_ms()

    async def note_jump(self, shift_ms: int) -> bool:
        """Keeps note that the server's clock was set; False when another watcher was first."""
        with unavailable():
            call = self._call("jump", shift_ms, self._offline_after_ms, JUMP_TOLERANCE_MS)
            return bool(await run(self._client, call))

    async def readmit(self) -> int:
        """Puts back one slice of those taken out between the last jump of the clock and its note, whoever noted
        it; SWEEP_SLICE: maybe more.
        """
        with unavailable():
            call = self._call("readmit", self._offline_after_ms, SWEEP_SLICE, JUMP_TOLERANCE_MS)
            return int(await run(self._client, call))

    async def receive(self, receiver: str, *, gap_s: float) -> bool:
        """A receiver is there; returns whether none had been for `gap_s`, which begins a grace."""
        with unavailable():
            call = self._call("receive", receiver, round(gap_s * 1000), self._offline_after_ms)
            return bool(await run(self._client, call))

    async def begin_rebuild(self, marker: str, greatest_recorded: StreamId | None) -> None:
        """Readies the stream: both groups exist, and new entries get ids above everything recorded.

        Sets of another layout are deleted first, since no script of this build would ever take an agent out of
        them.
        """
        with unavailable():
            epoch: bytes | None = await self._client.get(self._keys.epoch)  # type: ignore[assignment]  # not decoded
            found = Epoch.parse(epoch.decode("ascii", "replace")) if epoch else None
            if found is not None and found.layout != LAYOUT:
                await self._wipe()
            await self._client.set(self._keys.rebuild, f"{marker} {await self._run_id()}")
            await self.publish()
            for group in (GROUP_INDEX, GROUP_RECORD):
                await ensure_group(self._client, self._keys.heartbeats, group)
            newest = await newest_id(self._client, self._keys.heartbeats)
            if greatest_recorded is not None and newest < greatest_recorded:
                await command(self._client, "XSETID", self._keys.heartbeats, str(greatest_recorded))
                newest = greatest_recorded
            # With the data went the note that the clock was set, or it was taken before the ids were raised.
            if newest.ms > await self.now_ms():
                await self._client.hset(self._keys.clock, "ahead_ms", str(newest.ms))

    async def publish(self) -> None:
        """Lets those read the index who have no settings: planners' clients, and people with redis-cli."""
        with unavailable():
            await self._client.set(self._keys.offline_after, self._offline_after_ms)
            try:
                await self._client.function_load(library(), replace=True)
            except ResponseError as error:
                if is_not_now(error):
                    raise
                # An old server, or a user who may not: people with redis-cli still have the sorted sets.
                _log.warning("This server takes no function library", reason=str(error))

    async def restore(self, states: Sequence[RecordedState], *, alone: bool = False) -> int:
        """Puts recorded agents back where the index knows nothing newer; returns how many.

        Args:
            states: in any order.
            alone: no lookup waits for Redis meanwhile. Then more script calls travel together, however long they
                take, since on a slow network the way is most of it, and Redis gets the next before it is done.
        """
        # Neighbours in the sets follow each other: the server finds their places faster, and adds up more at once.
        ordered = sorted(states, key=_place)
        calls = (
            self._call("restore", self._offline_after_ms, *(a for one in part for a in restore_arguments(one)))
            for part in _slices(ordered, APPLY_SLICE)
        )
        with unavailable():
            pace = Pace(_LEAST_ALONE if alone else 1)
            return sum(await run_few_at_a_time(self._client, calls, pace, ahead=alone))

    async def open_epoch(self, marker: str) -> bool:
        """Ends a rebuild; False when Redis was flushed, restarted or replaced meanwhile: it must begin again."""
        with unavailable():
            run_id = await self._run_id()
            arguments = (f"{marker} {run_id}", LAYOUT, run_id, self._offline_after_ms)
            return await run(self._client, self._call("open_epoch", *arguments)) is not None

    async def _run_id(self) -> str:
        """Read anew. A rebuild is bound to one run of the server: one that restarted, or a replica that took over,
        may have the marker and yet lack the last agents that were put back.
        """
        self._epochs.reconnected()
        return await self._epochs.run_id()

    def _call(self, script: str, *arguments: Argument) -> Call:
        now_ms = self._clock.now_ms()
        return Call(load(script), self._keys.prefix, ("" if now_ms is None else now_ms, *arguments))

    async def _wipe(self) -> None:
        kept = {self._keys.heartbeats.encode(), self._keys.dead_letters.encode()}
        leases = self._keys.lease("").encode()
        cursor = 0
        while True:
            cursor, found = await self._client.scan(cursor, match=f"{self._keys.prefix}:*", count=500)
            keys: list[Any] = found
            if doomed := [key for key in keys if key not in kept and not key.startswith(leases)]:
                await self._client.unlink(*doomed)
            if cursor == 0:
                return


def _outcome(reply: bytes | ResponseError) -> Outcome | UndecodableEntryError:
    if isinstance(reply, ResponseError):
        refused = UndecodableEntryError("The index cannot take it")
        refused.__cause__ = reply
        return refused
    return Outcome(reply.decode())


def _place(state: RecordedState) -> tuple[str, str, float]:
    agent = state.agent
    return agent.agent_type, agent.pool_name, Resources.of(agent.resource_metrics).gpu_vram_available_gb


def _slices(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part
