"""Index and record driven by hand on a clock that the test turns: every step that a process takes, and every way
in which it may fail to, without a process. The servers are real; only time, deaths and outages are made.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import redis.asyncio as aredis

from app.errors import CapacityUnknownError, IndexUnavailableError, RecordUnavailableError
from app.index.clock import ManualClock
from app.index.opening import Index, open_index
from app.index.upkeep import RECEIVING_GAP_MS
from app.models.capacity import AgentStatus, CapacityPage, CapacityQuery
from app.models.identity import AgentId, StreamId
from app.record import Record, open_record
from app.service.orchestrator import OrchestratorService
from app.settings import Settings
from tests.faults.dying import Death, MortalReader, SometimesAway, WorkerDiedError
from tests.faults.fleet import Answers, Lookup, Reporter, Sent, heartbeat_of
from tests.faults.settled import differences, overtakes, unapplied, unsettled
from tests.faults.witness import Witness
from workers.clock_watch import ClockWatch
from workers.ingest import Ingest
from workers.reaper import Reaper
from workers.rebuild import Rebuild
from workers.recorder import Reconcile, Recorder

START_MS: Final = 1_800_000_000_000
OFFLINE_AFTER_S: Final = 90.0
_STEP_S: Final = 15.0  # between two rounds of those that run all the time


class World:
    """Two ingests and two recorders of each group's work, one reaper, and agents that are told what was taken.

    Attributes:
        reporters: agents by number; a cloned id has a second one in `clones`.
        witness: knows when each of them really reported.
        record_away: whether the record is.
        receiving: whether anybody takes heartbeats in.
        taking_over: whether what a dead worker had read has been idle for long enough to be taken over.
        false_offline: agents that were declared offline though they had reported in time.
        lookups: how every search was answered, by the real clock.
    """

    def __init__(self, index: Index, record: Record, settings: Settings, clock: ManualClock) -> None:
        self.index = index
        self.record = record
        self.clock = clock
        self.settings = settings
        self.reporters: dict[int, Reporter] = {}
        self.witness = Witness(settings.offline_after_s)
        self.record_away = False
        self.receiving = True
        self.taking_over = True
        self.false_offline: list[str] = []
        self.lookups = Answers()
        self.appended = 0
        self._arrived: dict[AgentId, deque[Sent]] = {}
        self._boots = 0
        self._recorded_before_flush = StreamId(0)
        self._flushed = False
        self._writer: Any = self._sometimes_away(record.writer)
        self.rebuild = Rebuild(index.upkeep, self._sometimes_away(record.reader), "world")
        self.watch = ClockWatch(index.upkeep)
        self.reaper = Reaper(index.upkeep, "world", every_s=0, watch=self.watch)
        self.ingests = [self._new_ingest() for _ in range(2)]
        self.recorders = [self._new_recorder() for _ in range(2)]
        self.service = OrchestratorService(
            index.capacity,
            self._sometimes_away(record.capacity),
            clock=clock,
            offline_after_s=settings.offline_after_s,
            steady_s=lambda: self.steady_s,
        )

    @property
    def steady_s(self) -> float:
        """Seconds since the beginning, whatever the clock was set to."""
        return self.witness.now_s

    # Agents

    def reporter(self, number: int) -> Reporter:
        if number not in self.reporters:
            self.reporters[number] = Reporter(AgentId(f"00000000-0000-4000-8000-{number:012x}"))
        return self.reporters[number]

    async def report(self, *numbers: int, status: AgentStatus = AgentStatus.ONLINE) -> None:
        """The next heartbeat of each, in this order."""
        beats = []
        for number in numbers:
            self.reporter(number).next()
            beats.append((self.reporter(number), self.reporter(number).sent[-1]))
        await self.send(beats, status=status)

    async def send(
        self, beats: Sequence[tuple[Reporter, Sent]], *, status: AgentStatus = AgentStatus.ONLINE
    ) -> list[StreamId]:
        """Appends heartbeats as they were sent, first or once more, and tells who sent them."""
        if not self.receiving:
            return []
        try:
            stream_ids = await self.index.log.append([heartbeat_of(*beat, status) for beat in beats])
        except IndexUnavailableError:
            return []
        for (reporter, sent), stream_id in zip(beats, stream_ids, strict=True):
            self._arrived.setdefault(reporter.agent_id, deque(maxlen=16)).append(sent)
            self.acknowledge(reporter, sent, stream_id, status)
        return stream_ids

    def acknowledge(self, reporter: Reporter, sent: Sent, stream_id: StreamId, status: AgentStatus) -> None:
        """Tells the sender that the log has its heartbeat."""
        self.appended += 1
        newest = reporter.acknowledged
        if stream_id <= self._recorded_before_flush:
            # The clock stands below what the record has, and the rebuild has not raised the ids yet.
            self.witness.lose([reporter.agent_id])
        elif sent.boot_id == reporter.boot_id and (
            newest is None or newest[0].boot_id != sent.boot_id or newest[0].seq < sent.seq
        ):
            reporter.acknowledged = sent, stream_id
            self.witness.hear(reporter.agent_id, status, undated=stream_id.ms > self.clock.now_ms())

    def restart(self, number: int) -> None:
        self._boots += 1
        self.reporter(number).restart(f"boot-{self._boots + 1}")

    async def repeat(self, number: int, back: int) -> None:
        """The heartbeat that so many after it have followed arrives once more."""
        reporter = self.reporter(number)
        arrived = self._arrived.get(reporter.agent_id, ())
        if len(arrived) >= back and not await overtakes(self.index.capacity._client, reporter, arrived[-back]):
            await self.send([(reporter, arrived[-back])])

    async def clone_reports(self, reporter: Reporter) -> None:
        """A machine with a boot that the agent no longer has goes on counting, while the agent is alive.

        Nothing while a store may think otherwise: of an agent that was silent, or that it has to learn again, or
        of which a dead worker's entries are missing.
        """
        former = self._former(reporter)
        if not former or not self.taking_over:
            return
        heard_s = self.witness.heard_s[reporter.agent_id][-1]
        if heard_s > self.witness.jumped_s and self.steady_s - heard_s < self.settings.offline_after_s / 2:
            sent = Sent(former[-1].boot_id, max(one.seq for one in former) + 1)
            reporter.sent.append(sent)
            await self.send([(reporter, sent)])

    async def former_boot_reports(self, reporter: Reporter) -> None:
        """The same after the agent was silent for long: it takes over, and the agent's boot is retired now."""
        former, newest = self._former(reporter), reporter.acknowledged
        # The rule counts by ids: a clock that was set back makes them stand still.
        silent_s = 0.0 if newest is None else (self.clock.now_ms() - newest[1].ms) / 1000
        if former and silent_s >= self.settings.offline_after_s:
            boot_id = former[-1].boot_id
            reporter.restart(boot_id)
            reporter.seq = max(one.seq for one in reporter.sent if one.boot_id == boot_id)
            reporter.next()
            await self.send([(reporter, reporter.sent[-1])])

    def _former(self, reporter: Reporter) -> list[Sent]:
        """What came of other boots than the one in force; nothing where that cannot be told."""
        newest = reporter.acknowledged
        if newest is None or newest[0].boot_id != reporter.boot_id or self.witness.has_lost(reporter.agent_id):
            return []
        return [sent for sent in self._arrived.get(reporter.agent_id, ()) if sent.boot_id != reporter.boot_id]

    # Workers

    async def ingest(self, which: int = 0, *, death: Death | None = None) -> None:
        """One round; a worker that dies is replaced by one that does not know what it had read."""
        worker = self.ingests[which]
        self._ready(worker._reader)
        if death is not None:
            worker = Ingest(MortalReader(worker._reader, death), self.index.upkeep)  # type: ignore[arg-type]
            self.ingests[which] = self._new_ingest()
        with suppress(IndexUnavailableError, WorkerDiedError):
            await worker.run_once()
        for agent_id in self.witness.undated():
            if await self._is_applied(agent_id):
                self.witness.see_applied(agent_id)

    async def record_round(self, which: int = 0, *, death: Death | None = None) -> None:
        worker = self.recorders[which]
        self._ready(worker._reader)
        if death is not None:
            worker = Recorder(MortalReader(worker._reader, death), self._writer)  # type: ignore[arg-type]
            self.recorders[which] = self._new_recorder()
        with suppress(IndexUnavailableError, RecordUnavailableError, WorkerDiedError):
            await worker.run_once()
            await Reconcile(self.index.states, self._writer).run_once()

    async def reap(self) -> None:
        before = await self._offline()
        behind = await self.index.upkeep.current_epoch() is None or await unapplied(self.index.capacity._client)
        declared = await self.reaper.sweep()
        self.witness.see_reaped(behind=behind)
        if not declared:
            return
        for agent_id in await self._offline() - before:
            if not self.witness.was_silent(agent_id, applied=await self._is_applied(agent_id)):
                self.false_offline.append(f"{agent_id}: declared offline without having been silent for long")

    async def receive(self) -> None:
        """What every API process says every five seconds."""
        if self.receiving:
            with suppress(IndexUnavailableError):
                await self.index.upkeep.receive("world", gap_s=RECEIVING_GAP_MS / 1000)

    async def rebuild_if_due(self) -> None:
        with suppress(IndexUnavailableError, RecordUnavailableError):
            if await self.index.upkeep.current_epoch() is None:
                await self.rebuild.rebuild()
                self.witness.see_rebuilt(self._of_the_future())

    # Faults

    def advance(self, seconds: float) -> None:
        """Lets time pass in which nothing runs."""
        self.clock.advance(seconds)
        self.witness.now_s += seconds

    async def pause(self, seconds: float) -> None:
        """Lets time pass in which neither reaper nor receivers run. Whoever serves lookups watches the clock."""
        at_first_s = min(self.watch.pause_s, seconds)
        self.advance(at_first_s)
        await self.look()
        self.advance(seconds - at_first_s)
        await self.look()

    async def look(self) -> None:
        """Whoever watches the clock notices that it was set."""
        await self.watch.look()
        self.witness.see_noticed()

    async def wait(self, seconds: float) -> None:
        """Lets time pass in which reaper, clock watch and receivers run."""
        left = seconds
        while left > 0:
            self.advance(min(left, _STEP_S))
            left -= _STEP_S
            with suppress(IndexUnavailableError):
                await self.look()
                await self.receive()
                await self.reap()

    async def jump(self, seconds: float, *, noticed: bool = True) -> None:
        """Sets the server's clock, and lets the workers notice now or later."""
        await self.look()
        await self.receive()
        self.clock.jump(seconds)
        self.witness.see_jump(seconds)
        self.witness.wait_for([one for one in self._of_the_future() if not await self._is_applied(one)])
        if noticed:
            await self.look()

    async def flush(self) -> None:
        """FLUSHALL: what was not recorded yet is gone, and only that."""
        await self.index.capacity._client.flushall()
        self._flushed = True
        # Of boots that nobody has recorded nobody can tell any more whether they are old.
        self._arrived.clear()
        self._recorded_before_flush = await self.record.reader.greatest_position() or StreamId(0)
        pages = [page async for page in self.record.reader.states(page_size=500)]
        recorded = {state.agent.agent_id: state for page in pages for state in page}
        if self.steady_s - self.witness.jumped_s < OFFLINE_AFTER_S:
            # With the data went the note that the clock was set: until they report again nobody can tell.
            self.witness.lose(self.witness.heard_s)
        # After the clock was set back ids do not say when an entry came.
        self.witness.lose(self._of_the_future())
        for reporter in self.reporters.values():
            state = recorded.get(reporter.agent_id)
            if state is None or state.order.holder is None:
                reporter.acknowledged = None
                self.witness.lose([reporter.agent_id])
                continue
            kept = Sent(state.order.holder.boot_id, state.order.holder.seq)
            if reporter.acknowledged is not None and reporter.acknowledged[1] > state.order.last_id:
                reporter.acknowledged = (kept, state.order.last_id) if kept.boot_id == reporter.boot_id else None
                self.witness.lose([reporter.agent_id])

    # The end

    async def settle(self) -> None:
        """Everything works again until nothing is left to do."""
        self.record_away = False
        self.receiving = True
        self.taking_over = True
        await self.look()
        for _ in range(200):
            await self.rebuild_if_due()
            for which in range(2):
                await self.ingest(which)
                await self.record_round(which)
            why = await unsettled(self.index.capacity._client)
            if not why or why.startswith("silent"):
                return
        raise AssertionError(f"it does not become quiet: {why}")

    async def differences(self) -> list[str]:
        async with aredis.Redis.from_url(self.settings.redis_url or "", socket_timeout=60) as client:
            # A transition may have been flushed before it was recorded.
            found = await differences(client, self.record, self.reporters.values(), events=not self._flushed)
        return [*found, *self.false_offline]

    async def search(self, **wanted: Any) -> CapacityPage | None:
        """None where neither store can tell."""
        started = time.monotonic()
        try:
            page = await self.service.find(CapacityQuery(**wanted))
        except (CapacityUnknownError, IndexUnavailableError, RecordUnavailableError) as error:
            refused = Lookup(started, time.monotonic() - started, 503, "", error.code)
            self.lookups.answers.append(refused)
            return None
        self.lookups.answers.append(Lookup(started, time.monotonic() - started, 200, page.source, ""))
        return page

    async def found(self) -> set[AgentId]:
        """Whom a search for anything finds, all pages of it."""
        found: set[AgentId] = set()
        after = None
        while True:
            page = await self.search(limit=1_000, after=after)
            assert page is not None
            found |= {row.agent_id for row in page.agents}
            after = page.cursor
            if after is None:
                return found

    async def misjudged(self) -> list[str]:
        """Agents that a search shows though they have long been silent, or hides though they just reported."""
        return self.witness.misjudged(await self.found())

    async def _is_applied(self, agent_id: AgentId) -> bool:
        """Whether the index has come as far as the agent's last heartbeat."""
        shown: Any = await self.index.capacity._client.hget(self.index.keys.agent(agent_id), "last_id")
        newest = next(one for one in self.reporters.values() if one.agent_id == agent_id).acknowledged
        return newest is not None and shown is not None and newest[1] <= StreamId.parse(shown.decode())

    def _of_the_future(self) -> list[AgentId]:
        """Whose newest heartbeat has an id that the clock has yet to come to."""
        now_ms = self.clock.now_ms()
        newest = {one.agent_id: one.acknowledged for one in self.reporters.values()}
        return [agent_id for agent_id, last in newest.items() if last is not None and last[1].ms > now_ms]

    def _sometimes_away(self, port: Any) -> Any:
        return SometimesAway(port, away=lambda: self.record_away)

    def _ready(self, reader: Any) -> None:
        reader._next_takeover = 0.0 if self.taking_over else math.inf

    def _new_ingest(self) -> Ingest:
        return Ingest(self.index.index_reader(), self.index.upkeep)

    def _new_recorder(self) -> Recorder:
        return Recorder(self.index.record_reader(), self._writer)

    async def _offline(self) -> set[AgentId]:
        members: Any = await self.index.capacity._client.zrange(self.index.keys.offline, 0, -1)
        return {AgentId(member.decode()) for member in members}


def world_settings(redis_url: str, record_url: str, **changes: Any) -> Settings:
    return Settings(
        redis_url=redis_url,
        database_url=record_url,
        stream_block_s=0.001,
        takeover_after_s=0.001,
        offline_after_s=OFFLINE_AFTER_S,
        # A busy machine is no outage.
        **{"redis_timeout_s": 10, "stream_timeout_s": 15, "database_timeout_s": 30, **changes},
    )


@asynccontextmanager
async def opened_world(settings: Settings) -> AsyncIterator[World]:
    """On an empty Redis and an empty, migrated record; the epoch is open, its grace over."""
    clock = ManualClock(START_MS)
    index = open_index(settings, purpose="world", clock=clock)
    record = open_record(settings)
    try:
        world = World(index, record, settings, clock)
        await world.watch.look()
        await world.rebuild_if_due()
        world.advance(OFFLINE_AFTER_S)
        await world.receive()
        yield world
    finally:
        await record.close()
        await index.close()
