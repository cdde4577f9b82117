"""Ingestion, measured: from the API or the stream to index and record, and back after a loss."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any, Final

import msgspec
import psutil
import redis

from app.client import CapacityClient
from app.errors import AgentNotFoundError
from app.index.keys import GROUP_INDEX, GROUP_RECORD, Keys
from app.models.heartbeat import Heartbeat, ResourceMetrics, encode
from app.models.identity import AgentId
from app.record import migrate
from tests.bench.filling import fill
from tests.bench.fleets import AGENT_TYPE, Fleet, make_fleet
from tests.bench.lookups import Grounds
from tests.bench.measure import Measurement, Summary, percentile, until
from tests.bench.oracle import Oracle
from tests.bench.pressure import PostSource, StreamSource
from tests.bench.programs import Groups, Program, api, environment_for, worker
from tests.bench.questions import TOP_10, TOP_10_FOUR_BANDS
from tests.bench.sides import SOCKET_TIMEOUT_S, IndexSide, Ping, Side
from tests.servers import PostgresServer, ValkeyServer, start_valkey, wait_until

_HELD_PER_S: Final = 100_000 / 30
_FULL_SPEED_PER_S: Final = 30_000.0
_AT_ONCE: Final = 8
_BATCH: Final = 500
_FREED_S: Final = 1.0
"""Within this the server gives back the buffers of connections that were closed."""


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """Heartbeats a second of one way in; `cpu_us` is what each process spent on one heartbeat."""

    name: str
    heartbeats: int
    per_s: float
    cpu_us: dict[str, float] = {}


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """Lookups with all workers running: idle, and at a steady rate of heartbeats.

    Attributes:
        behind: entries not yet applied or recorded when the sending stopped, by group.
        idle, loaded: by side and question, as `side: question`.
    """

    per_s: float
    seconds: float
    behind: dict[str, int]
    idle: dict[str, Summary]
    loaded: dict[str, Summary]


class Delay(msgspec.Struct, frozen=True, kw_only=True):
    """From the moment a heartbeat is sent to the stream until a lookup shows it."""

    name: str
    probes: int
    p50_ms: float
    p99_ms: float


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Redis's memory for each agent; `pool_sets_bytes` is the part that only searches within a pool need."""

    pools: int
    bytes: float
    pool_sets_bytes: float


class Refill(msgspec.Struct, frozen=True, kw_only=True):
    """From FLUSHALL until lookups trust the index again; `cpu_us` is what each process spent on one agent."""

    agents: int
    seconds: float
    cpu_us: dict[str, float]


class Ingestion(msgspec.Struct, kw_only=True):
    agents: int
    rates: list[Rate] = []
    held: Held | None = None
    delays: list[Delay] = []
    memory: list[Memory] = []
    refill: Refill | None = None
    checked: int = 0


class Length(msgspec.Struct, frozen=True, kw_only=True):
    """How much to measure; `rounds`: how often every agent reports in each measurement of the whole way."""

    agents: int
    rounds: int
    single: int
    batched: int
    held_s: float
    probes: int


def measure_ingestion(
    grounds: Grounds, server: PostgresServer, length: Length, *, tell: Callable[[str], None]
) -> Ingestion:
    """Measures everything on a fleet of its own."""
    found = Ingestion(agents=length.agents)
    fleet = make_fleet("mixed", length.agents)
    tell("memory")
    for pools in (1, 20):
        found.memory.append(_memory(make_fleet("mixed", length.agents, pools=pools), grounds.pool))
    with ExitStack() as closing_all:
        grounds.valkey.flush()
        database_url = server.database_url(server.create_database())
        asyncio.run(migrate(database_url))
        environment = environment_for(grounds.valkey.url, database_url)
        way = _Way(grounds.valkey, server, fleet, environment, closing_all)
        tell("API")
        for name, per_request, heartbeats in (
            ("API, one heartbeat a request", 1, length.single),
            (f"API, {_BATCH} heartbeats a request", _BATCH, length.batched),
        ):
            found.rates.append(_posted(grounds, way, name, per_request=per_request, heartbeats=heartbeats))
        grounds.valkey.flush()
        with way.workers():
            way.until_trusted()
            tell("new agents")
            found.rates.append(way.whole("stream to index and record, agents never seen", 1, changing=False))
            tell("unchanged")
            found.rates.append(
                way.whole("stream to index and record, values unchanged", length.rounds, changing=False)
            )
            tell("changing")
            found.rates.append(
                way.whole("stream to index and record, every value changing", length.rounds, changing=True)
            )
            tell("delay")
            found.delays.append(way.delay_when_idle(length.probes))
            found.delays.append(way.delay_under_load(length))
            tell("held")
            found.held = way.held(length)
            tell("refill")
            found.refill = way.refill()
        found.checked = way.checked
    return found


class _Way:
    """The whole way of a heartbeat, with one process for each part."""

    def __init__(
        self,
        valkey: ValkeyServer,
        postgres: PostgresServer,
        fleet: Fleet,
        environment: Mapping[str, str],
        closing_all: ExitStack,
    ) -> None:
        self.fleet = fleet
        self.environment = environment
        self.groups = Groups(valkey.url)
        self._valkey = valkey
        self._postgres = postgres
        self._source = closing_all.enter_context(StreamSource(valkey.url))
        self._oracle = Oracle(fleet, (TOP_10, TOP_10_FOUR_BANDS))
        self._programs: dict[str, Program] = {}
        self.checked = 0
        closing_all.callback(self.groups.close)

    @contextmanager
    def workers(self) -> Iterator[None]:
        with ExitStack() as stopping:
            for name in ("ingest", "recorder", "reaper"):
                self._programs[name] = stopping.enter_context(worker(name, self.environment))
            yield

    def until_trusted(self) -> None:
        with closing(redis.Redis.from_url(self._valkey.url)) as client:
            wait_until(lambda: client.exists(Keys().epoch), timeout_s=60, what="an epoch")

    def whole(self, name: str, rounds: int, *, changing: bool) -> Rate:
        """Every agent reports `rounds` times, as fast as it goes, until index and record have all of it."""
        heartbeats = rounds * self.fleet.size
        source = self._source
        source.prepare(self.fleet, heartbeats, per_s=_FULL_SPEED_PER_S, changing=changing)
        used = self._cpu_s()
        started = time.perf_counter()
        source.go()
        sent = source.finish()
        self.groups.until_drained(GROUP_INDEX, GROUP_RECORD, timeout_s=600)
        took_s = time.perf_counter() - started
        cpu_us = _spent_us(used, self._cpu_s(), heartbeats)
        self._catch_up(changing=changing)
        if sent.count[-1] - sent.count[0] != heartbeats:
            raise AssertionError("the source stopped early")
        return Rate(name=name, heartbeats=heartbeats, per_s=round(heartbeats / took_s, 1), cpu_us=cpu_us)

    def delay_when_idle(self, probes: int) -> Delay:
        with closing(_Probe(self._valkey.url)) as probe:
            return _delay("nothing else", [probe.measure() for _ in range(probes)])

    def delay_under_load(self, length: Length) -> Delay:
        per_s, for_s = self._held_per_s, length.held_s / 2
        self._source.prepare(self.fleet, math.ceil(per_s * (for_s + 2)), per_s=per_s)
        self._source.go()
        end = time.perf_counter() + for_s
        with closing(_Probe(self._valkey.url)) as probe:
            delays_s = [probe.measure() for _ in until(end)]
        sent = self._source.stop()
        self.groups.until_drained(GROUP_INDEX, GROUP_RECORD)
        self._catch_up(changing=True)
        return _delay(f"{sent.per_s:,.0f} heartbeats a second", delays_s)

    @property
    def _held_per_s(self) -> float:
        """The rate of 100,000 agents, or less for a small fleet, which would go round too often."""
        return min(_HELD_PER_S, self.fleet.size / 3)

    def held(self, length: Length) -> Held:
        """Lookups while heartbeats come at the rate of 100,000 agents."""
        per_s = self._held_per_s
        questions = (TOP_10, TOP_10_FOUR_BANDS)
        url = self._valkey.url
        with closing(Ping(url)) as ping, closing(IndexSide(url, self._oracle.asked_ids)) as index:
            sides: list[Side] = [ping, index]
            oracles = dict.fromkeys([side.name for side in sides], self._oracle)
            idle = Measurement(oracles, block_s=0.02)
            idle.warm_up(sides, questions)
            for _ in until(time.perf_counter() + length.held_s / 2):
                idle.begin_round()
                idle.turn(sides, questions)
            idle.check()
            loaded = Measurement(oracles, block_s=0.02)
            loaded.warm_up(sides, questions)
            self._source.prepare(self.fleet, math.ceil(per_s * (length.held_s + 5)), per_s=per_s)
            self._source.go()
            for _ in until(time.perf_counter() + length.held_s):
                loaded.begin_round()
                loaded.turn(sides, questions)
            sent = self._source.stop()
            behind = {group: self.groups.behind(group) for group in (GROUP_INDEX, GROUP_RECORD)}
            self.groups.until_drained(GROUP_INDEX, GROUP_RECORD)
            loaded.check(sent)
            self._catch_up(changing=True)
            self.checked += idle.checked + loaded.checked
        return Held(
            per_s=round(sent.per_s, 1),
            seconds=round(sent.at[-1] - sent.at[0], 1),
            behind=behind,
            idle=_by_name(idle),
            loaded=_by_name(loaded),
        )

    def refill(self) -> Refill:
        """FLUSHALL, and how long it takes until a lookup answers rightly from the index again."""
        used = self._cpu_s()
        with closing(redis.Redis.from_url(self._valkey.url, socket_timeout=60)) as client:
            started = time.perf_counter()
            client.flushall()
            wait_until(lambda: client.exists(Keys().epoch), timeout_s=300, interval_s=0.01, what="the refill")
        took_s = time.perf_counter() - started
        cpu_us = _spent_us(used, self._cpu_s(), self.fleet.size)
        self._check_now()
        return Refill(agents=self.fleet.size, seconds=round(took_s, 2), cpu_us=cpu_us)

    def _catch_up(self, *, changing: bool) -> None:
        self.groups.trim()
        if changing:
            self._oracle.advance_to(self._source.sent)
        else:
            self._oracle.pass_over(self._source.sent - self._oracle.applied)
        self._check_now()

    def _check_now(self) -> None:
        with closing(IndexSide(self._valkey.url, self._oracle.asked_ids)) as index:
            measurement = Measurement({index.name: self._oracle}, block_s=0.01)
            measurement.probe([index], (TOP_10, TOP_10_FOUR_BANDS))
            self.checked += measurement.checked

    def _cpu_s(self) -> dict[str, float]:
        used = {name: program.cpu_s() for name, program in self._programs.items()}
        used["Redis"] = _cpu_s(psutil.Process(self._valkey.pid))
        main = psutil.Process(self._postgres.pid)
        used["Postgres"] = sum(_cpu_s(process) for process in (main, *main.children(recursive=True)))
        return used


class _Probe:
    """One agent of a type that no search asks for, reporting a new figure each time."""

    _AGENT: Final = AgentId("00000000-0000-4000-8000-00000000b0b0")

    def __init__(self, url: str) -> None:
        self._index = CapacityClient(url, timeout_s=SOCKET_TIMEOUT_S)
        self._client = redis.Redis.from_url(url)
        self._seq = int(time.time() * 1000)

    def measure(self) -> float:
        """Seconds from sending a heartbeat to the first lookup that shows it."""
        self._seq += 1
        load = float(self._seq % 1_000_000)
        heartbeat = Heartbeat(
            agent_id=self._AGENT,
            agent_type="infra",
            boot_id="probe",
            seq=self._seq,
            resource_metrics=ResourceMetrics(cpu_load_1min=load, cpu_cores_available=1),
        )
        payload = encode(heartbeat)
        started = time.perf_counter()
        self._client.xadd(Keys().heartbeats, {"heartbeat": payload})
        while True:
            with suppress(AgentNotFoundError):
                if self._index.get(self._AGENT).cpu_load_1min == load:
                    return time.perf_counter() - started
            if time.perf_counter() - started > 60:
                raise AssertionError("a heartbeat did not become visible within a minute")

    def close(self) -> None:
        self._client.close()
        self._index.close()


def _posted(grounds: Grounds, way: _Way, name: str, *, per_request: int, heartbeats: int) -> Rate:
    """The API process alone: the log takes the heartbeats, nobody reads them meanwhile."""
    at_once = _AT_ONCE if per_request == 1 else 2
    with api(way.environment) as port, PostSource(port, per_request=per_request, at_once=at_once) as source:
        source.prepare(way.fleet, heartbeats, per_s=1e9)
        source.go()
        sent = source.finish()
    with closing(redis.Redis.from_url(grounds.valkey.url)) as client:
        taken = client.xlen(Keys().heartbeats)
        client.delete(Keys().heartbeats)
    if taken != sent.count[-1]:
        raise AssertionError(f"the API accepted {sent.count[-1]} heartbeats, the stream has {taken}")
    return Rate(name=name, heartbeats=sent.count[-1], per_s=round(sent.per_s, 1))


def _memory(fleet: Fleet, pool: ProcessPoolExecutor) -> Memory:
    """On a server of its own, so that nothing freed or kept from before counts."""
    with start_valkey() as valkey, closing(redis.Redis.from_url(valkey.url, socket_timeout=60)) as client:
        # What every server holds, whatever the fleet: scripts, functions, groups, buffers.
        fill(valkey.url, msgspec.structs.replace(fleet, size=1), pool=pool)
        time.sleep(_FREED_S)
        before = _used_bytes(client)
        fill(valkey.url, fleet, pool=pool)
        time.sleep(_FREED_S)
        used = _used_bytes(client) - before
        pool_sets = sum(
            client.memory_usage(key, samples=0) or 0
            for key in client.scan_iter(match=f"{Keys().prefix}:{AGENT_TYPE}:pool:*", count=1_000)
        )
    return Memory(
        pools=fleet.pools,
        bytes=round(used / (fleet.size - 1), 1),
        pool_sets_bytes=round(pool_sets / fleet.size, 1),
    )


def _used_bytes(client: redis.Redis) -> int:
    info: Any = client.info("memory")
    return int(info["used_memory"])


def _delay(name: str, unordered_s: list[float]) -> Delay:
    delays_s = sorted(unordered_s)
    return Delay(
        name=name,
        probes=len(delays_s),
        p50_ms=round(percentile(delays_s, 0.5) * 1000, 2),
        p99_ms=round(percentile(delays_s, 0.99) * 1000, 2),
    )


def _by_name(measurement: Measurement) -> dict[str, Summary]:
    return {f"{side}: {question}": summary for (side, question), summary in measurement.summaries().items()}


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def _spent_us(before: Mapping[str, float], after: Mapping[str, float], count: int) -> dict[str, float]:
    return {name: round((used - before.get(name, 0.0)) / count * 1e6, 1) for name, used in after.items()}
