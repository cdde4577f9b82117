"""Agents that report over HTTP and remember what was acknowledged, and a planner that looks up all the while."""

from __future__ import annotations

import http.client
import json
import math
import random
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from app.models.capacity import AgentStatus, GpuType
from app.models.heartbeat import Heartbeat, ResourceMetrics
from app.models.identity import AgentId, StreamId
from tests.waiting import PATIENCE_S

SEARCH: Final = "/api/v1/agents/available-capacity?min_gpu_vram_gb=0&min_cpu_cores=1&limit=50"
ANSWERS_WITHIN_S: Final = 2.0
_OUTAGES: Final = (OSError, http.client.HTTPException)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: Any


class Caller:
    """Keeps one connection open, as a planner or agent does; a broken one is made anew for the next call."""

    def __init__(self, port: int, *, timeout_s: float = 15.0) -> None:
        self.port = port
        self._timeout_s = timeout_s
        self._connection: http.client.HTTPConnection | None = None

    def call(self, method: str, path: str, body: object = None) -> Answer:
        """Raises OSError or HTTPException when no answer came; the request may have been carried out then."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self._timeout_s)
        payload = None if body is None else json.dumps(body)
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            self._connection.request(method, path, body=payload, headers=headers)
            response = self._connection.getresponse()
            content = response.read()
        except _OUTAGES:
            self.close()
            raise
        answered = {name.lower(): value for name, value in response.getheaders()}
        if answered.get("connection") == "close":
            self.close()
        return Answer(response.status, answered, json.loads(content) if content else None)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Sent(NamedTuple):
    """A heartbeat's place in its agent's life, from which all it says follows."""

    boot_id: str
    seq: int

    @property
    def vram(self) -> float:
        return self.seq % 384 / 8 + 1

    @property
    def cores(self) -> int:
        return self.seq % 19 + 1


@dataclass
class Reporter:
    """One agent. It keeps only its newest heartbeat: what failed is replaced by the next one, not repeated.

    Attributes:
        sent: every heartbeat that was sent, acknowledged or not.
        taken: those that were answered 202.
        acknowledged: the newest one of these, and the id it got.
    """

    agent_id: AgentId
    boot_id: str = "boot-1"
    seq: int = 0
    sent: list[Sent] = field(default_factory=list)
    taken: list[Sent] = field(default_factory=list)
    acknowledged: tuple[Sent, StreamId] | None = None

    def next(self, **fields: Any) -> dict[str, Any]:
        self.seq += 1
        return self.repeat(**fields)

    def repeat(self, **fields: Any) -> dict[str, Any]:
        """The newest heartbeat once more, as after a lost answer."""
        beat = Sent(self.boot_id, self.seq)
        self.sent.append(beat)
        metrics = {"gpu_vram_available_gb": beat.vram, "cpu_cores_available": beat.cores, "gpu_type": "nvidia"}
        return {"boot_id": beat.boot_id, "seq": beat.seq, "resource_metrics": metrics, **fields}

    def acknowledge(self, stream_id: str) -> None:
        self.taken.append(self.sent[-1])
        self.acknowledged = self.sent[-1], StreamId.parse(stream_id)

    def restart(self, boot_id: str) -> None:
        self.boot_id, self.seq = boot_id, 0


def agent_ids(count: int, *, first: int = 1) -> list[AgentId]:
    return [AgentId(f"00000000-0000-4000-8000-{first + number:012x}") for number in range(count)]


class Fleet:
    """Agents that report one by one or all in a batch, by hand or by themselves in a thread.

    Attributes:
        accepted: how many heartbeats were acknowledged.
        refused: answers that were no 202, by status; 0 counts those that never came.
    """

    def __init__(self, ports: Sequence[int], agents: Sequence[AgentId]) -> None:
        self.reporters = [Reporter(agent_id) for agent_id in agents]
        self._callers = [Caller(port) for port in ports]
        self.accepted = 0
        self.refused: dict[int, int] = {}
        self.last_refusal: Answer | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def ids(self) -> list[AgentId]:
        return [reporter.agent_id for reporter in self.reporters]

    def move(self, ports: Sequence[int]) -> None:
        """Reports to other APIs from now on."""
        with self._lock:
            for caller in self._callers:
                caller.close()
            self._callers = [Caller(port) for port in ports]

    def report_one(self, reporter: Reporter, **fields: Any) -> int:
        """Sends its next heartbeat and returns the status, 0 when no answer came."""
        with self._lock:
            return self._send(reporter, reporter.next(**fields))

    def repeat_one(self, reporter: Reporter) -> int:
        with self._lock:
            return self._send(reporter, reporter.repeat())

    def report(self, *, among: Sequence[Reporter] | None = None, **fields: Any) -> None:
        """One heartbeat of each, every one of them acknowledged at last."""
        for reporter in self.reporters if among is None else among:
            deadline = time.monotonic() + 60
            while self.report_one(reporter, **fields) != 202:
                assert time.monotonic() < deadline, f"no 202 for a minute; last: {self.last_refusal}"
                time.sleep(0.05)

    def report_batch(self) -> Answer:
        """One heartbeat of each in one request; raises OSError or HTTPException when no answer came."""
        with self._lock:
            items = [{"agent_id": one.agent_id, **one.next()} for one in self.reporters]
            answer = self._caller().call("POST", "/api/v1/heartbeats", {"heartbeats": items})
            for item in answer.body.get("accepted", ()):
                self.reporters[item["index"]].acknowledge(item["stream_id"])
                self.accepted += 1
            return answer

    def start(
        self, *, every_s: float = 0.01, among: Sequence[Reporter] | None = None, batches: bool = False
    ) -> None:
        """From now on an agent reports every so often, in random order; with `batches` all of them at once."""
        order = random.Random(1)
        reporters = self.reporters if among is None else among
        report = self._try_batch if batches else lambda: self.report_one(order.choice(reporters))
        self._stop.clear()
        self._thread = threading.Thread(
            target=self._keep_reporting, args=(every_s, report), name="fleet", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(PATIENCE_S)
            self._thread = None

    def close(self) -> None:
        self.stop()
        for caller in self._callers:
            caller.close()

    def _keep_reporting(self, every_s: float, report: Callable[[], object]) -> None:
        while not self._stop.wait(every_s):
            report()

    def _try_batch(self) -> None:
        try:
            answer = self.report_batch()
        except _OUTAGES:
            self.refused[0] = self.refused.get(0, 0) + 1
            return
        if answer.status != 202:
            self.refused[answer.status] = self.refused.get(answer.status, 0) + 1
            self.last_refusal = answer

    def _caller(self) -> Caller:
        return random.choice(self._callers)

    def _send(self, reporter: Reporter, body: dict[str, Any]) -> int:
        try:
            answer = self._caller().call("POST", f"/api/v1/agents/{reporter.agent_id}/heartbeat", body)
        except _OUTAGES:
            self.refused[0] = self.refused.get(0, 0) + 1
            return 0
        if answer.status == 202:
            reporter.acknowledge(answer.body["stream_id"])
            self.accepted += 1
        else:
            self.refused[answer.status] = self.refused.get(answer.status, 0) + 1
            self.last_refusal = answer
        return answer.status


class Lookup(NamedTuple):
    """One lookup of the planner and its answer.

    Attributes:
        status: 0 when there was no answer; `code` says why then.
        source: `index` or `record`, empty without an answer.
    """

    at: float
    took_s: float
    status: int
    source: str
    code: str


class Answers:
    """What a planner was told, or was not, one lookup after the other."""

    def __init__(self) -> None:
        self.answers: list[Lookup] = []

    def since(self, moment: float) -> list[Lookup]:
        return [answer for answer in self.answers if answer.at >= moment]


def unanswered(lookups: Iterable[Lookup]) -> list[Lookup]:
    return [lookup for lookup in lookups if lookup.status == 0]


def took_ms(lookups: Iterable[Lookup]) -> list[float]:
    """Of those that were answered."""
    return [1000 * lookup.took_s for lookup in lookups if lookup.status]


class Lookups(Answers):
    """A planner that asks every few milliseconds: searches and single agents by turns.

    Of several APIs it asks the one that answered last; where that gives no answer, the others once each.

    Attributes:
        crossed: answers that speak of another agent than the one asked for, or of one that is not `known`.
    """

    def __init__(
        self, port: int, agents: Sequence[AgentId], *, known: Collection[AgentId], every_s: float = 0.02
    ) -> None:
        super().__init__()
        self._ports: Sequence[int] = [port]
        self._caller = Caller(port)
        self._agents = agents
        self._known = known
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_asking, name="lookups", daemon=True)
        self.crossed: list[str] = []

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(PATIENCE_S)
        self._caller.close()

    def move(self, ports: Sequence[int]) -> None:
        """Asks these APIs from the next question on."""
        self._ports = [*ports]

    def until(self, wanted: Callable[[Lookup], bool], *, timeout_s: float = 60.0) -> Lookup:
        """The first answer from now on that is as wanted."""
        deadline = time.monotonic() + timeout_s
        seen = len(self.answers)
        while time.monotonic() < deadline:
            for answer in self.answers[seen:]:
                if wanted(answer):
                    return answer
            seen = max(seen, len(self.answers))
            time.sleep(0.005)
        raise AssertionError(f"no such lookup within {timeout_s} s; last: {self.answers[-3:]}")

    def _keep_asking(self) -> None:
        turn = 0
        while not self._stop.wait(self._every_s):
            turn += 1
            self.ask(self._agents[turn // 2 % len(self._agents)] if turn % 2 else None)

    def ask(self, one: AgentId | None) -> None:
        """For this agent, or whom a search finds."""
        started = time.monotonic()
        try:
            answer = self._answer(SEARCH if one is None else f"/api/v1/agents/{one}/capacity")
        except _OUTAGES as error:
            took_s = time.monotonic() - started
            self.answers.append(Lookup(started, took_s, 0, "", type(error).__name__))
            return
        took_s = time.monotonic() - started
        source = answer.headers.get("x-capacity-source", "index")
        body = answer.body
        code = body.get("code", "") if isinstance(body, dict) else ""
        if answer.status == 200:
            found = [body] if one is not None else body
            if one is not None and body["agent_id"] != one:
                self.crossed.append(f"asked for {one}, got {body['agent_id']}")
            strangers = {row["agent_id"] for row in found if row["agent_id"] not in self._known}
            self.crossed += [f"a stranger: {agent_id}" for agent_id in strangers]
        self.answers.append(Lookup(started, took_s, answer.status, source, code))

    def _answer(self, path: str) -> Answer:
        """Raises OSError or HTTPException when no API gave one."""
        ports = sorted(self._ports, key=lambda port: port != self._caller.port)
        for port in ports[:-1]:
            try:
                return self._call(port, path)
            except _OUTAGES:
                continue
        return self._call(ports[-1], path)

    def _call(self, port: int, path: str) -> Answer:
        if self._caller.port != port:
            self._caller.close()
            self._caller = Caller(port)
        return self._caller.call("GET", path)


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def heartbeat_of(reporter: Reporter, sent: Sent, status: AgentStatus) -> Heartbeat:
    return Heartbeat(
        agent_id=reporter.agent_id,
        boot_id=sent.boot_id,
        seq=sent.seq,
        status=status,
        resource_metrics=ResourceMetrics(
            gpu_vram_available_gb=sent.vram, cpu_cores_available=sent.cores, gpu_type=GpuType.NVIDIA
        ),
    )
