"""Random histories of heartbeats, cordons, silences, losses and restarts: what must hold after every step."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.api.wiring import wire
from app.errors import AgentArchivedError, AgentNotFoundError
from app.index.clock import ManualClock
from app.models.capacity import AgentStatus, CapacityQuery
from app.models.change import ChangeKind
from app.models.cordon import Cordon
from app.models.identity import StreamId
from app.record import open_record
from tests.consistency import assert_index_consistent
from tests.indexing import agent_id, apply_everything, heartbeat, index_settings, opened_index
from tests.logs import START_MS
from tests.servers import ValkeyServer
from tests.stack import Stack
from workers.clock_watch import ClockWatch
from workers.reaper import Reaper
from workers.rebuild import Rebuild
from workers.recorder import Recorder

AGENTS: Final = (1, 2)
FAR_AWAY_MS: Final = 2**60

Step = tuple[Any, ...]

agents = st.sampled_from(AGENTS)
statuses = st.sampled_from([AgentStatus.ONLINE] * 4 + [AgentStatus.BUSY, AgentStatus.OFFLINE])
figures = (st.sampled_from([4.0, 8.0, 24.0]), st.integers(1, 9), statuses)
steps = st.one_of(
    st.tuples(st.just("report"), agents, *figures),
    st.tuples(st.just("report"), agents, *figures),
    st.tuples(st.just("send"), agents, *figures),
    st.tuples(st.just("apply")),
    st.tuples(st.just("record")),
    st.tuples(st.just("cordon"), agents, st.sampled_from([None, None, 30, 200]), st.booleans()),
    st.tuples(st.just("uncordon"), agents),
    st.tuples(st.just("lose everything")),
    st.tuples(st.just("restart")),
    st.tuples(st.just("wait"), st.sampled_from([20, 95])),
    st.tuples(st.just("reap")),
    st.tuples(st.just("forget"), agents),
)
histories = st.lists(steps, min_size=6, max_size=16)

EVENTFUL: Final[list[Step]] = [
    ("cordon", 1, None, True),
    ("report", 1, 24.0, 8, AgentStatus.ONLINE),
    ("lose everything",),
    ("report", 1, 8.0, 8, AgentStatus.ONLINE),
    ("cordon", 2, 30, False),
    ("restart",),
    ("uncordon", 1),
    ("wait", 95),
    ("reap",),
    ("report", 2, 4.0, 2, AgentStatus.BUSY),
    ("forget", 1),
    ("report", 2, 4.0, 2, AgentStatus.ONLINE),
]
"""One in which everything happens once, whatever is drawn."""


class History:
    """A whole Headroom without processes, to which things happen.

    Attributes:
        cordoned_until_ms: by agent, for those with a cordon that nobody lifted.
    """

    def __init__(self, redis_url: str, record_url: str) -> None:
        self.clock = ManualClock(START_MS)
        self.cordoned_until_ms: dict[int, int] = {}
        self._settings = index_settings(redis_url, database_url=record_url)
        self._opened = AsyncExitStack()
        self._seq = 0
        self.stack: Stack

    async def start(self, *, fresh: bool) -> None:
        index = await self._opened.enter_async_context(opened_index(self._settings, clock=self.clock, epoch=fresh))
        record = open_record(self._settings)
        self._opened.push_async_callback(record.close)
        self.stack = Stack(index, record, self._settings, self.clock)
        self.feed = index.feed()
        self._cordons = wire(self._settings, self.stack.ports_over(index.capacity)).cordons
        self._recorder = Recorder(index.record_reader(), record.writer)

    async def end(self) -> None:
        await self._opened.aclose()

    async def take(self, step: Step) -> None:
        name, *arguments = step
        await getattr(self, f"_{name.replace(' ', '_')}")(*arguments)

    def cordoned(self) -> set[int]:
        now_ms = self.clock.now_ms()
        return {number for number, until_ms in self.cordoned_until_ms.items() if now_ms < until_ms}

    async def _send(self, number: int, vram: float, cores: int, status: AgentStatus) -> None:
        self._seq += 1
        await self.stack.index.log.append(
            [heartbeat(number, vram=vram, cores=cores, status=status, seq=self._seq)]
        )

    async def _report(self, number: int, vram: float, cores: int, status: AgentStatus) -> None:
        await self._send(number, vram, cores, status)
        await self._apply()

    async def _apply(self) -> None:
        await apply_everything(self.stack.index, ingest=self.stack._ingest)

    async def _record(self) -> None:
        for _ in range(3):
            await self._recorder.run_once()

    async def _cordon(self, number: int, expires_in_s: int | None, recorded: bool) -> None:  # noqa: FBT001  # drawn
        now_ms = self.clock.now_ms()
        until_ms = FAR_AWAY_MS if expires_in_s is None else now_ms + 1000 * expires_in_s
        expires_at = None if expires_in_s is None else datetime.fromtimestamp(until_ms / 1000, UTC)
        since = datetime.fromtimestamp(now_ms / 1000, UTC)
        cordon = Cordon(reason="r", actor="a", since=since, expires_at=expires_at)
        if recorded:
            try:
                await self._cordons.change(agent_id(number), cordon)
            except (AgentArchivedError, AgentNotFoundError):
                return
        elif await self.stack.index.cordons.cordon(agent_id(number), cordon) is None:
            return
        self.cordoned_until_ms[number] = until_ms

    async def _uncordon(self, number: int) -> None:
        try:
            await self._cordons.change(agent_id(number), None)
        except (AgentArchivedError, AgentNotFoundError):
            return
        self.cordoned_until_ms.pop(number, None)

    async def _lose_everything(self) -> None:
        """Redis's data, once the record has what was acknowledged."""
        await self._record()
        # Versions are times: a feed begun anew within the millisecond of its loss would look like the old one.
        self.clock.advance(1)
        await self.stack.index.capacity._client.flushall()
        assert await Rebuild(self.stack.index.upkeep, self.stack.record.reader, "test").rebuild()

    async def _restart(self) -> None:
        await self.end()
        await self.start(fresh=False)

    async def _wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    async def _reap(self) -> None:
        await Reaper(self.stack.index.upkeep, "test", every_s=0, watch=ClockWatch(self.stack.index.upkeep)).sweep()

    async def _forget(self, number: int) -> None:
        position = await self.stack.index.capacity.forget(agent_id(number))
        await self.stack.record.agents.forget(agent_id(number), position=position)
        if position is not None:
            # Its operator let go of it, and of what he said about it.
            self.cordoned_until_ms.pop(number, None)


def live(
    valkey: ValkeyServer,
    migrated: Path,
    history: Sequence[Step],
    check: Callable[[History], Awaitable[None]],
    at_the_end: Callable[[History], Awaitable[None]],
) -> None:
    """Takes the steps one by one and checks after each."""

    async def run(record: Path) -> None:
        shutil.copy(migrated, record)
        lived = History(valkey.url, f"sqlite+aiosqlite:///{record}")
        await lived.start(fresh=True)
        try:
            for number in AGENTS:
                await lived.take(("report", number, 8.0, 4, AgentStatus.ONLINE))
            for step in history:
                await lived.take(step)
                await check(lived)
            await at_the_end(lived)
        finally:
            await lived.end()

    valkey.flush()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder) / "record.db"))


@settings(max_examples=25, deadline=None)
@example(EVENTFUL)
@given(histories)
def test_a_cordoned_agent_is_in_no_search_whatever_happens(
    valkey_server: ValkeyServer, migrated_file: Path, history: list[Step]
) -> None:
    async def check(lived: History) -> None:
        found = await lived.stack.index.capacity.find(CapacityQuery())
        assert not {agent_id(number) for number in lived.cordoned()} & {row.agent_id for row in found.agents}

    async def everybody_is_found_once_nobody_is_cordoned(lived: History) -> None:
        for number in AGENTS:
            await lived.take(("uncordon", number))
            await lived.take(("send", number, 8.0, 4, AgentStatus.ONLINE))
        await lived.take(("apply",))
        assert await lived.stack.search() == sorted(AGENTS, reverse=True)

    live(valkey_server, migrated_file, history, check, everybody_is_found_once_nobody_is_cordoned)


@settings(max_examples=15, deadline=None)
@example(EVENTFUL)
@given(histories)
def test_whoever_replays_the_feed_has_the_index_after_every_step(
    valkey_server: ValkeyServer, migrated_file: Path, history: list[Step]
) -> None:
    """From version 0 on an empty model, entry by entry, and on from where it was after each step."""
    model: dict[str, tuple[float, int]] = {}
    version = StreamId(0)

    async def check(lived: History) -> None:
        nonlocal version
        for change in await lived.feed.read(version, block_s=0.001):
            assert change.version >= version or change.kind is ChangeKind.RESET
            version = change.version
            if change.kind is ChangeKind.RESET:
                model.clear()
            elif change.agent_id is not None:
                model.pop(change.agent_id, None)
                if change.placeable:
                    model[change.agent_id] = (change.gpu_vram_available_gb, change.cpu_cores_available)
        assert model == await indexed(lived)

    async def indexed(lived: History) -> dict[str, tuple[float, int]]:
        client: Any = lived.stack.index.capacity._client
        keys = lived.stack.index.keys
        vram, cores = [
            dict(await client.zrange(key, 0, -1, withscores=True))
            for key in (keys.vram("desktop"), keys.cores("desktop"))
        ]
        assert vram.keys() == cores.keys()
        return {one.decode(): (vram[one], int(cores[one])) for one in vram}

    async def who_is_behind_starts_over(lived: History) -> None:
        await check(lived)
        await lived.take(("apply",))
        await assert_index_consistent(lived.stack.index)
        client: Any = lived.stack.index.capacity._client
        keys = lived.stack.index.keys
        entries = await client.xrange(keys.events)
        if len(entries) > 2:
            await client.xtrim(keys.events, maxlen=1, approximate=False)
            behind = StreamId.parse(entries[0][0])
            (first, *_) = await lived.feed.read(behind, block_s=0.001)
            assert first.kind is ChangeKind.RESET

    live(valkey_server, migrated_file, history, check, who_is_behind_starts_over)
