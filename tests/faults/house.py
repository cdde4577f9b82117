"""A whole Headroom of real processes on real servers, to be broken by a test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import redis.asyncio as aredis
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from app.errors import RecordUnavailableError
from app.models.identity import AgentId
from app.record import open_record
from app.settings import Settings
from tests.faults.fleet import Answer, Caller, Fleet, Lookups, Reporter, agent_ids
from tests.faults.nursery import ROOT, Nursery, Process
from tests.faults.proxy import Proxy
from tests.faults.settled import KEYS, differences, unsettled
from tests.servers import ValkeyServer, free_port
from tests.waiting import PATIENCE_S, wait_until

T = TypeVar("T")

EVERYTHING: Final = ("ingest", "recorder", "reaper", "api")
_QUICK: Final = {
    "takeover_after_s": 1.0,
    "stream_block_s": 0.2,
    "sweep_interval_s": 0.2,
    "database_timeout_s": 1.0,
    "shutdown_after_s": 3.0,
}


class House:
    """Its processes reach Redis through `redis` and Postgres through `postgres`, two proxies.

    Attributes:
        valkey: the server; tests restart and pause it.
        database_url: of the record itself, past the proxy.
        fleet: agents that report to all APIs; each has reported once before a test begins.
        lookups: a planner that has been asking since then.
        by_name: the newest process of each name.
        agents: all there are, of every fleet.
        asked_s: how long each lookup took that a test made itself.
    """

    def __init__(
        self,
        nursery: Nursery,
        valkey: ValkeyServer,
        database_url: str,
        directory: Path,
        settings: Mapping[str, Any],
    ) -> None:
        self.valkey = valkey
        self.database_url = database_url
        self._nursery = nursery
        self._directory = directory
        self._settings = {**_QUICK, **settings}
        database_port = int(database_url.rpartition(":")[2].partition("/")[0])
        self.redis = Proxy(valkey.port)
        self.postgres = Proxy(database_port)
        self._closing: list[Any] = [self.redis, self.postgres]
        self.processes: list[Process] = []
        self._metrics: dict[int, int] = {}
        self.by_name: dict[str, Process] = {}
        self.ports: list[int] = []
        self._fleets: list[Fleet] = []
        self.agents: set[AgentId] = set()
        self.asked_s: list[float] = []
        self.fleet: Fleet
        self.lookups: Lookups

    def start(self, name: str, *, stop_at: str | None = None, **settings: Any) -> Process:
        """Starts a worker or an API of its own port; returns at once.

        Args:
            name: `api`, `ingest`, `recorder` or `reaper`.
            stop_at: a failpoint at which it stops itself.
            settings: for this process alone.
        """
        chosen = {
            "redis_url": f"redis://127.0.0.1:{self.redis.port}/0",
            "database_url": self._proxied_database_url,
            "data_dir": str(self._directory),
            **self._settings,
            **settings,
        }
        metrics_port = free_port()
        if name == "api":
            chosen["port"] = metrics_port
            self.ports.append(metrics_port)
        else:
            chosen["metrics_port"] = metrics_port
        output = self._directory / f"{len(self.processes)}-{name}.log"
        output.touch()
        arguments = ["api"] if name == "api" else ["worker", name]
        process = self._nursery.start(arguments, environment_of(chosen), output=output, stop_at=stop_at)
        self.processes.append(process)
        self.by_name[name] = process
        self._metrics[process.pid] = metrics_port
        return process

    def move_to(self, valkey: ValkeyServer) -> None:
        """From now on new connections to Redis lead to this server; those there are stay where they are."""
        self.valkey = valkey
        self.redis.target = valkey.port

    def replace(self, name: str, *, stop_at: str) -> Process:
        """Ends the newest process of that name and starts one with a failpoint in its place."""
        self.by_name[name].kill()
        return self.start(name, stop_at=stop_at)

    def open(self, names: Sequence[str], *, agents: int, lookups: bool) -> None:
        """Starts the processes and returns once every agent has been heard and is found."""
        for name in names:
            self.start(name)
        for port in self.ports:
            self.until_answering(port)
        self.fleet = self.another_fleet(agent_ids(agents))
        self.fleet.report()
        self.until_quiet(trusted="ingest" in names)
        self.lookups = Lookups(self.ports[0], self.fleet.ids, known=self.agents)
        self._closing.append(self.lookups)
        if lookups:
            self.lookups.start()
            self.lookups.until(lambda answer: answer.status == 200 and answer.source == "index")

    def another_fleet(self, agents: Sequence[AgentId]) -> Fleet:
        fleet = Fleet(self.ports, agents)
        self._fleets.append(fleet)
        self._closing.append(fleet)
        self.agents.update(agents)
        return fleet

    def counted(self, name: str, metric: str, **labels: str) -> float:
        """A figure of the newest process of that name; 0 when it has not counted yet."""
        url = f"http://127.0.0.1:{self._metrics[self.by_name[name].pid]}/metrics"
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
            families = text_string_to_metric_families(answer.read().decode())
            samples = [sample for family in families for sample in family.samples]
        return sum(one.value for one in samples if one.name == metric and labels.items() <= one.labels.items())

    def move_callers(self) -> None:
        """From now on fleets and lookups go to the APIs that there are now."""
        for fleet in self._fleets:
            fleet.move(self.ports)
        self.lookups.move(self.ports)

    def until_answering(self, port: int, *, timeout_s: float = PATIENCE_S) -> None:
        def answers() -> bool:
            try:
                return self.get("/livez", port=port).status == 200
            except OSError:
                return False

        self.until(answers, timeout_s=timeout_s, what=f"an API at {port}")

    def get(self, path: str, *, port: int | None = None) -> Answer:
        return self.call("GET", path, port=port)

    def call(self, method: str, path: str, body: object = None, *, port: int | None = None) -> Answer:
        caller = Caller(port or self.ports[0])
        started = time.monotonic()
        try:
            answer = caller.call(method, path, body)
        finally:
            caller.close()
        if method == "GET" and "capacity" in path:
            self.asked_s.append(time.monotonic() - started)
        return answer

    def cordon(self, agent_id: AgentId, cordon: dict[str, object] | None) -> None:
        """Cordons an agent, or lifts its cordon."""
        answer = self.call("PATCH", f"/api/v1/agents/{agent_id}", {"cordon": cordon})
        assert answer.status == 200, answer

    def until_quiet(self, *, timeout_s: float = PATIENCE_S, trusted: bool = True) -> float:
        """Waits until nothing is left to process, and returns how long that took in seconds."""

        async def reason() -> str:
            async with self.client() as client:
                try:
                    why = await unsettled(client)
                except (aredis.ConnectionError, aredis.TimeoutError, aredis.ResponseError) as error:
                    return str(error)
            return "" if not trusted and "epoch" in why else why

        started = time.monotonic()
        why = "not asked yet"
        while why:
            assert time.monotonic() - started < timeout_s, f"not quiet: {why}\n{self.logs()}"
            time.sleep(0.05)
            why = asyncio.run(reason())
        return time.monotonic() - started

    def check(self, *, heal: bool = True) -> float:
        """The end state of every run. With `heal` each agent reports once more first, as it would anyway.

        Returns how long it took to become quiet, in seconds.
        """
        self.fleet.stop()
        if heal:
            for fleet in self._fleets:
                fleet.report()
        took_s = self.until_quiet()
        wrong = self.differences()
        assert not wrong, "\n".join(wrong)
        assert not self.lookups.crossed, self.lookups.crossed[:5]
        unforeseen = [line for process in self.processes for line in _unforeseen(process)]
        assert not unforeseen, "\n".join(unforeseen)
        assert self.found() == self.agents
        return took_s

    def found(self) -> set[AgentId]:
        """Whom a search for anything finds."""
        answer = self.get("/api/v1/agents/available-capacity?limit=10000")
        assert answer.status == 200, answer
        return {row["agent_id"] for row in answer.body}

    def settle_quickly(self) -> None:
        """`check` for a house in which agents fall silent within seconds, maybe while they are being compared."""
        for _ in range(2):
            with contextlib.suppress(AssertionError):
                self.check()
                return
        self.check()

    def consumers(self, group: str) -> list[dict[str, Any]]:
        """Those of the log's group: `name`, `pending`, `idle` in ms."""
        with self.valkey.client() as client:
            found: Any = client.xinfo_consumers(KEYS.heartbeats, group)
            return list(found)

    def applied(self, reporters: Sequence[Reporter]) -> bool:
        """Whether the index shows what these agents were last told was taken."""
        with self.valkey.client() as client:
            shown = {one.agent_id: client.hget(KEYS.agent(one.agent_id), "seq") for one in reporters}
        return all(
            one.acknowledged is not None and shown[one.agent_id] == str(one.acknowledged[0].seq)
            for one in reporters
        )

    def differences(self) -> list[str]:
        """Between index, hashes, record and what the agents were told was taken."""

        async def compare() -> list[str]:
            record = open_record(Settings(database_url=self.database_url))
            try:
                async with self.client() as client:
                    reporters = [reporter for fleet in self._fleets for reporter in fleet.reporters]
                    return await differences(client, record, reporters)
            finally:
                await record.close()

        return asyncio.run(compare())

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """Reads from the record; empty while it is away."""

        async def read() -> list[tuple[Any, ...]]:
            record = open_record(Settings(database_url=self.database_url, database_timeout_s=PATIENCE_S))
            try:
                async with record.database.reading() as connection:
                    return [tuple(row) for row in await connection.execute(text(statement))]
            except RecordUnavailableError:
                return []
            finally:
                await record.close()

        return asyncio.run(read())

    def client(self) -> aredis.Redis:
        """Past the proxy; a context manager."""
        return aredis.Redis(host="127.0.0.1", port=self.valkey.port, socket_timeout=PATIENCE_S)

    def logs(self, *, characters: int = 1_500) -> str:
        return "\n".join(f"--- {one.pid}\n{one.log[-characters:]}" for one in self.processes)

    def until_logged(
        self, line: str, *, by: Process | None = None, times: int = 1, timeout_s: float = PATIENCE_S
    ) -> None:
        """Waits until the processes (or one of them) have written the text so many times since they started."""
        logs = [by] if by is not None else self.processes
        self.until(
            lambda: sum(one.log.count(line) for one in logs) >= times,
            timeout_s=timeout_s,
            what=f"“{line}” in a log",
        )

    def next_refusal(self) -> Answer:
        """The next answer to a heartbeat of the fleet that is no 202."""
        self.fleet.last_refusal = None
        self.until(lambda: self.fleet.last_refusal is not None, what="a refusal")
        answer: Answer | None = self.fleet.last_refusal
        assert answer is not None
        return answer

    def reads(self, process: Process, group: str) -> bool:
        """Whether the worker has asked for entries within the last half second."""
        return any(f"-{process.pid}-" in one["name"] and one["idle"] < 500 for one in self.consumers(group))

    def until(self, predicate: Callable[[], T], *, what: str, timeout_s: float = PATIENCE_S) -> T:
        try:
            return wait_until(predicate, timeout_s=timeout_s, interval_s=0.02, what=what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None

    def close(self) -> None:
        for closing in reversed(self._closing):
            closing.close()
        for process in self.processes:
            process.kill()

    @property
    def _proxied_database_url(self) -> str:
        head, _, tail = self.database_url.rpartition(":")
        return f"{head}:{self.postgres.port}/{tail.partition('/')[2]}"


def environment_of(settings: Mapping[str, Any]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADROOM_")}
    given = {f"HEADROOM_{name.upper()}": str(value) for name, value in settings.items()}
    return {**kept, "PYTHONPATH": str(ROOT), **given}


def _unforeseen(process: Process) -> list[str]:
    """What no code expected: a server that is away is expected, a traceback is not."""
    log = process.log
    return [f"{process.pid}: {log[-3000:]}"] if "Traceback" in log or "A round failed" in log else []
