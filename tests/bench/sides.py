"""The sides that ask Redis: the floor, this index, and the two ways to intersect the plain sets."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, Final, Protocol

import msgspec
import redis

from app.client import CapacityClient
from app.index.keys import Keys
from app.models.capacity import AgentCapacity, AvailableCapacity
from tests.bench.fleets import AGENT_TYPE
from tests.bench.insights import client_call, told
from tests.bench.questions import INSIGHT_KINDS, Answer, Promise, Question, Row

OFFLINE_AFTER_S: Final = 86_400.0
"""Nobody falls silent during a run, however long it takes."""

SOCKET_TIMEOUT_S: Final = 60.0


class Timed(msgspec.Struct, frozen=True):
    """One call: how long it took, when it returned (`perf_counter`), what came back."""

    took_s: float
    returned_at: float
    raw: Any


class Side(Protocol):
    """One way to answer the questions."""

    name: str
    promise: Promise

    def ask(self, question: Question, turns: Sequence[int]) -> list[Timed]:
        """Asks once per turn, timing each call with everything that the asker has to do to use the answer."""
        ...

    def read(self, question: Question, raw: Any) -> Answer | None:
        """The answer in comparable form; None for a side that answers nothing. Not timed."""
        ...

    def close(self) -> None: ...


def timed(call: Callable[[int], Any], turns: Sequence[int]) -> list[Timed]:
    results = []
    for turn in turns:
        started = perf_counter()
        raw = call(turn)
        returned = perf_counter()
        results.append(Timed(returned - started, returned, raw))
    return results


def connect(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, socket_timeout=SOCKET_TIMEOUT_S, decode_responses=False)


class Ping:
    """The floor: the cheapest round trip over the connection that the client uses, made the same way."""

    name = "PING"
    promise: Promise = "exact"

    def __init__(self, url: str) -> None:
        self._client = CapacityClient(url, timeout_s=SOCKET_TIMEOUT_S)

    def ask(self, question: Question, turns: Sequence[int]) -> list[Timed]:
        del question
        return timed(lambda _: self._client.ping(), turns)

    def read(self, question: Question, raw: Any) -> None:
        del question, raw

    def close(self) -> None:
        self._client.close()


class IndexSide:
    """This index, asked by the planner's blocking client over one connection."""

    name = "index"
    promise: Promise = "exact"

    def __init__(self, url: str, asked_ids: Sequence[str]) -> None:
        self._client = CapacityClient(url, timeout_s=SOCKET_TIMEOUT_S)
        self._asked_ids = asked_ids

    def ask(self, question: Question, turns: Sequence[int]) -> list[Timed]:
        vram_gb, cores, limit = question.min_vram_gb, question.min_cores, question.limit
        client, asked_ids = self._client, self._asked_ids
        if question.kind in INSIGHT_KINDS:
            return timed(client_call(client, question), turns)
        if question.kind == "one":
            return timed(lambda turn: client.get(asked_ids[turn % len(asked_ids)]), turns)
        if question.kind == "count":
            return timed(lambda _: client.count(vram_gb, cores), turns)
        return timed(lambda _: client.find(vram_gb, cores, limit=limit), turns)

    def read(self, question: Question, raw: Any) -> Answer:
        if question.kind in INSIGHT_KINDS:
            return told(raw)
        if question.kind == "count":
            return int(raw)
        if question.kind == "one":
            return (row_of_agent(raw),)
        return tuple(row_of(agent) for agent in raw)

    def close(self) -> None:
        self._client.close()


class _PlainSets(ABC):
    """Both plain sets, and the documents of those found; no notion of rungs, bands or freshness."""

    promise: Promise = "parts"
    name: str

    def __init__(self, url: str, asked_ids: Sequence[str]) -> None:
        self._client = connect(url)
        self._keys = Keys()
        self._asked_ids = asked_ids

    def ask(self, question: Question, turns: Sequence[int]) -> list[Timed]:
        if question.kind == "one":
            return timed(lambda turn: self._documents([self._asked_ids[turn % len(self._asked_ids)]]), turns)
        if question.kind == "count":
            return timed(lambda _: self._count(question), turns)
        return timed(lambda _: self._top(question), turns)

    def read(self, question: Question, raw: Any) -> Answer:
        if question.kind == "count":
            return int(raw)
        if question.kind == "one":
            ((agent_id, _, _, vram_gb, cores, load),) = raw
            return ((agent_id, "", float(vram_gb), int(cores), float(load)),)
        found, documents = raw
        return tuple(
            _row_of_fields(fields, vram_gb, cores)
            for (_, vram_gb, cores), fields in zip(found, documents, strict=True)
        )

    def close(self) -> None:
        self._client.close()

    @abstractmethod
    def _count(self, question: Question) -> int: ...

    @abstractmethod
    def _top(self, question: Question) -> tuple[list[tuple[bytes, float, int]], list[Any]]: ...

    def _documents(self, agent_ids: Sequence[str]) -> list[Any]:
        """The readable fields of each agent's hash, in one round trip."""
        pipeline = self._client.pipeline(transaction=False)
        for agent_id in agent_ids:
            pipeline.hmget(self._keys.agent(agent_id), _FIELDS)
        return [[agent_id, *fields] for agent_id, fields in zip(agent_ids, pipeline.execute(), strict=True)]


_FIELDS: Final = ["agent_type", "pool_name", "gpu_vram_available_gb", "cpu_cores_available", "cpu_load_1min"]


class ClientIntersection(_PlainSets):
    """Both ZRANGEBYSCOREs, intersected in Python."""

    name = "client-side intersection"

    def _count(self, question: Question) -> int:
        return len(self._both(question))

    def _top(self, question: Question) -> tuple[list[tuple[bytes, float, int]], list[Any]]:
        both = self._both(question)
        both.sort(key=lambda found: (found[1], found[0]), reverse=True)
        best = both[: question.limit]
        return best, self._documents([found[0].decode() for found in best])

    def _both(self, question: Question) -> list[tuple[bytes, float, int]]:
        pipeline = self._client.pipeline(transaction=True)
        pipeline.zrangebyscore(self._keys.vram(AGENT_TYPE), question.min_vram_gb, "+inf", withscores=True)
        pipeline.zrangebyscore(self._keys.cores(AGENT_TYPE), question.min_cores, "+inf", withscores=True)
        by_vram, by_cores = pipeline.execute()
        cores = {member: int(score) for member, score in by_cores}
        return [(member, score, cores[member]) for member, score in by_vram if member in cores]


class ServerIntersection(_PlainSets):
    """ZRANGESTORE of both ranges, ZINTERSTORE of the two, and the best of that."""

    name = "ZINTER on the server"

    _TEMPORARY: Final = ("bench:vram", "bench:cores", "bench:both")

    def _count(self, question: Question) -> int:
        vram, cores, _ = self._TEMPORARY
        pipeline = self._store(question)
        pipeline.zintercard(2, [vram, cores])
        pipeline.unlink(*self._TEMPORARY)
        return int(pipeline.execute()[-2])

    def _top(self, question: Question) -> tuple[list[tuple[bytes, float, int]], list[Any]]:
        vram, cores, both = self._TEMPORARY
        pipeline = self._store(question)
        pipeline.zinterstore(both, {vram: 1, cores: 0})
        pipeline.zrange(both, 0, question.limit - 1, desc=True, withscores=True)
        pipeline.unlink(*self._TEMPORARY)
        best = pipeline.execute()[-2]
        documents = self._documents([member.decode() for member, _ in best])
        return [
            (member, score, int(fields[4])) for (member, score), fields in zip(best, documents, strict=True)
        ], documents

    def _store(self, question: Question) -> Any:
        vram, cores, _ = self._TEMPORARY
        pipeline = self._client.pipeline(transaction=True)
        pipeline.zrangestore(vram, self._keys.vram(AGENT_TYPE), question.min_vram_gb, "+inf", byscore=True)
        pipeline.zrangestore(cores, self._keys.cores(AGENT_TYPE), question.min_cores, "+inf", byscore=True)
        return pipeline


def row_of(agent: AvailableCapacity) -> Row:
    return (
        agent.agent_id,
        agent.pool_name,
        agent.gpu_vram_available_gb,
        agent.cpu_cores_available,
        agent.cpu_load_1min,
    )


def row_of_agent(agent: AgentCapacity) -> Row:
    """A single agent's answer names no pool."""
    return (agent.agent_id, "", agent.gpu_vram_available_gb, agent.cpu_cores_available, agent.cpu_load_1min)


def row_of_json(document: dict[str, Any]) -> Row:
    return (
        document["agent_id"],
        document.get("pool_name", ""),
        document["gpu_vram_available_gb"],
        document["cpu_cores_available"],
        document["cpu_load_1min"],
    )


def parse_json(raw: bytes) -> Any:
    return json.loads(raw)


def _row_of_fields(fields: Sequence[Any], vram_gb: float, cores: int) -> Row:
    agent_id, _, pool, _, _, load = fields
    return (agent_id, pool.decode(), vram_gb, cores, float(load))
