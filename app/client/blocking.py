"""The planner's client for threads; `app.client` is its front door."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from functools import partial
from types import TracebackType
from typing import Self, TypeVar
from uuid import UUID

from app.client.query import check_search, check_wait, events_of, query_of
from app.client.route import Route
from app.client.transport import Transport, open_transport, summary_page
from app.errors import AgentNotFoundError, UnavailableError
from app.models.capacity import AgentCapacity, AvailableCapacity, CapacityPage, CapacityQuery, GpuType
from app.models.change import Change, ChangeKind
from app.models.identity import DEFAULT_AGENT_TYPE, StreamId, parse_agent_id
from app.models.insight import Explanation, Fit, PoolTotals

T = TypeVar("T")


class CapacityClient:
    """Asks which agents have room. Make one per process and keep it: it keeps its connections.

    Example:
        >>> with CapacityClient("redis://127.0.0.1:6390") as client:
        ...     best = client.find(min_gpu_vram_gb=40, limit=1)
        >>> best[0].gpu_vram_available_gb, best[0].cpu_cores_available, best[0].pool_name
        (80.0, 64, 'training')

    Threads may share a client: each call in progress has a connection of its own. Over `redis://` there are as
    many as calls were ever in progress at once, and none waits for another; over `http://` there are at most 100.
    After a fork the child makes its own connections.
    Lookups change nothing, so a call whose kept connection turns out to be closed is repeated on a new one;
    nothing else is ever repeated. Over `redis://` a call that times out takes the idle connections with it: where
    a firewall has forgotten them, the next call need not wait for another one. Over `http://` it does not; idle
    connections are closed after 5 s there.

    Args:
        url: `redis://`, `rediss://` or `unix://` for the index (redis-py's URLs: user, password, database),
            `http://` or `https://` for the API, with a path before `/api` if it has one. The proxies of the
            environment are not used.
        fallback: another URL, asked when the first is away: it does not answer, refuses, or is being rebuilt.
            The next two seconds of calls go to it at once.
        timeout_s: longest wait for one answer of a server, and for a connection to it. A search of very many
            agents takes several answers.

    Raises:
        ValueError: a URL of another kind.
    """

    def __init__(self, url: str, *, fallback: str | None = None, timeout_s: float = 1.0) -> None:
        urls = [url] if fallback is None else [url, fallback]
        self._route: Route[Transport] = Route([open_transport(way, timeout_s=timeout_s) for way in urls])
        self._closed = False

    def find(
        self,
        min_gpu_vram_gb: float = 0.0,
        min_cpu_cores: int = 1,
        *,
        agent_type: str = DEFAULT_AGENT_TYPE,
        pool_name: str | None = None,
        gpu_type: GpuType | str | None = None,
        min_memory_gb: float = 0.0,
        max_age_s: float | None = None,
        limit: int | None = None,
        wait_s: float = 0.0,
    ) -> list[AvailableCapacity]:
        """Online agents with at least that much free, most free GPU memory first.

        An agent is in the answer only if it has been heard of lately (`HEADROOM_OFFLINE_AFTER_S`), whether or
        not anybody has noticed its silence yet. Equal agents come in the order of descending ids.

        Example:
            >>> for agent in client.find(8, 4, pool_name="default"):
            ...     print(agent.agent_id[-4:], agent.gpu_vram_available_gb, agent.cpu_cores_available)
            0003 24.0 12
            0002 16.0 8
            0001 12.0 4
            >>> [agent.pool_name for agent in client.find(gpu_type="nvidia", min_memory_gb=64, max_age_s=30)]
            ['training']
            >>> client.find(min_gpu_vram_gb=1000)
            []

        Args:
            min_gpu_vram_gb: free memory of one GPU, in GiB.
            min_cpu_cores: free cores.
            agent_type: kind of agent.
            pool_name: only agents of this pool.
            gpu_type: only agents with this kind of GPU.
            min_memory_gb: free main memory, in GiB.
            max_age_s: only agents heard of within so many seconds.
            limit: most agents in the answer; None for all. What a search costs grows with it.
            wait_s: when nothing fits, how long to wait until something does, at most 300. Nothing is polled.
                Others who wait are told of the same agents.

        Raises:
            InvalidQueryError: an argument that no search can have; nothing was sent.
            UnavailableError: nobody can answer now; `retry_after_s` says when to try again.
        """
        query = query_of(
            min_gpu_vram_gb,
            min_cpu_cores,
            agent_type=agent_type,
            pool_name=pool_name,
            gpu_type=gpu_type,
            min_memory_gb=min_memory_gb,
            max_age_s=max_age_s,
            limit=limit,
        )
        if not wait_s:
            return self._ask(lambda way: way.find(query)).agents
        check_wait(wait_s)
        deadline = time.monotonic() + wait_s
        return self._ask(lambda way: way.wait(query, wait_s=max(0.0, deadline - time.monotonic()))).agents

    def search(self, query: CapacityQuery) -> CapacityPage:
        """`find` for who wants to know more: where the answer comes from, how old it may be, if there is more.

        Example:
            >>> page = client.search(CapacityQuery(min_gpu_vram_gb=12.0, limit=2))
            >>> len(page.agents), page.more, page.total, page.source
            (2, True, 4, 'index')

        Raises:
            InvalidQueryError: what `find` would refuse, or a query with `after`: pages are followed for you.
            UnavailableError: as in `find`.
        """
        check_search(query)
        return self._ask(lambda way: way.find(query, with_total=query.counted))

    def count(
        self,
        min_gpu_vram_gb: float = 0.0,
        min_cpu_cores: int = 1,
        *,
        agent_type: str = DEFAULT_AGENT_TYPE,
        pool_name: str | None = None,
        gpu_type: GpuType | str | None = None,
        min_memory_gb: float = 0.0,
        max_age_s: float | None = None,
    ) -> int:
        """How many agents `find` would list, without listing them.

        Thresholds and pool are counted by the index at once, however many they are; agents that fell silent in
        the last second or so may still be among them. With any other filter the agents are looked at one by one,
        as in a search for all of them, and the number is exact.

        Example:
            >>> client.count(), client.count(8, 8), client.count(pool_name="training")
            (5, 3, 1)

        Raises:
            InvalidQueryError: as in `find`.
            UnavailableError: as in `find`.
        """
        query = query_of(
            min_gpu_vram_gb,
            min_cpu_cores,
            agent_type=agent_type,
            pool_name=pool_name,
            gpu_type=gpu_type,
            min_memory_gb=min_memory_gb,
            max_age_s=max_age_s,
            limit=None,
        )
        return self._ask(lambda way: way.count(query))

    def explain(
        self,
        min_gpu_vram_gb: float = 0.0,
        min_cpu_cores: int = 1,
        *,
        agent_type: str = DEFAULT_AGENT_TYPE,
        pool_name: str | None = None,
        gpu_type: GpuType | str | None = None,
        min_memory_gb: float = 0.0,
        max_age_s: float | None = None,
    ) -> Explanation:
        """Why `find` with these arguments finds what it finds: who fails by what, and who is nearest.

        Example:
            >>> why = client.explain(100, 8)
            >>> why.fitting, why.failing, why.possible
            (0, {'gpu_vram': 3, 'gpu_vram+cpu_cores': 2}, False)
            >>> [(miss.agent_id[-4:], miss.lacks_gpu_vram_gb) for miss in why.nearest]
            [('0004', 20.0), ('0003', 76.0), ('0002', 84.0)]

        Raises:
            InvalidQueryError: as in `find`.
            UnavailableError: as in `find`; the record cannot tell.
        """
        query = query_of(
            min_gpu_vram_gb,
            min_cpu_cores,
            agent_type=agent_type,
            pool_name=pool_name,
            gpu_type=gpu_type,
            min_memory_gb=min_memory_gb,
            max_age_s=max_age_s,
            limit=None,
        )
        return self._ask(lambda way: way.explain(query))

    def fit(
        self,
        min_gpu_vram_gb: float = 0.0,
        min_cpu_cores: int = 1,
        *,
        agent_type: str = DEFAULT_AGENT_TYPE,
        pool_name: str | None = None,
    ) -> Fit:
        """How many tasks of this size fit now, on how many agents, and how fragmented what is free is for them.

        Example:
            >>> room = client.fit(12, 8)
            >>> room.tasks, room.agents
            (8, 3)

        Raises:
            InvalidQueryError: as in `find`.
            UnavailableError: as in `explain`.
        """
        query = query_of(
            min_gpu_vram_gb,
            min_cpu_cores,
            agent_type=agent_type,
            pool_name=pool_name,
            gpu_type=None,
            min_memory_gb=0.0,
            max_age_s=None,
            limit=None,
        )
        return self._ask(lambda way: way.fit(query))

    def summary(self, *, agent_type: str | None = None, pool_name: str | None = None) -> list[PoolTotals]:
        """Totals of every pool, one for each kind of GPU in it.

        Example:
            >>> for pool in client.summary(pool_name="training"):
            ...     print(pool.gpu_type, pool.placeable, pool.gpu_vram_available_gb)
            nvidia 1 80.0

        Raises:
            UnavailableError: as in `explain`.
        """
        rows: list[PoolTotals] = []
        after: str | None = None
        while True:
            ask = partial(summary_page, agent_type=agent_type, pool_name=pool_name, after=after)
            page, after = self._ask(ask)
            rows += page
            if after is None:
                return rows

    def events(
        self,
        *,
        agent_type: str | None = None,
        pool_name: str | None = None,
        kinds: Collection[ChangeKind | str] | None = None,
        after: StreamId | str | None = None,
    ) -> Iterator[Change]:
        """Changes as they happen, without an end.

        What happened while a way was lost is told once it, or the other way, answers again: nothing is left out
        unless a `reset` says so.

        Example:
            >>> for change in client.events(after="0-0", kinds=["capacity"]):
            ...     print(change.kind)
            ...     break
            reset

        Args:
            agent_type: only changes of this kind of agent.
            pool_name: only changes of agents of this pool.
            kinds: only these kinds of change; `reset` comes in any case.
            after: only what came after this version, `0-0` for everything that is kept; None: what comes next.

        Raises:
            InvalidQueryError: a kind that there is not, or no version.
            UnavailableError: every way is away. Go on with `after` the version of the last change.
        """
        wanted, last = events_of(agent_type, pool_name, kinds, after)
        failures = 0
        while True:
            self._require_open()
            way = self._route.order()[0]
            try:
                for change in way.events(wanted, last):
                    self._route.answered(way)
                    failures, last = 0, change.version
                    yield change
            except UnavailableError:
                self._route.failed(way)
                failures += 1
                if failures > len(self._route.ways):
                    raise

    def get(self, agent_id: str | UUID) -> AgentCapacity:
        """One agent, of whatever type, online or not; a silent one reads `offline`.

        Example:
            >>> agent = client.get("00000000-0000-4000-8000-000000000004")
            >>> agent.status, agent.gpu_vram_available_gb, agent.gpu_type
            (<AgentStatus.ONLINE: 'online'>, 80.0, <GpuType.NVIDIA: 'nvidia'>)
            >>> client.get("00000000-0000-4000-8000-0000000000ff")
            Traceback (most recent call last):
            app.errors.AgentNotFoundError: Agent not found

        Raises:
            InvalidAgentIdError: not a UUID; nothing was sent.
            AgentNotFoundError: no such agent.
            UnavailableError: as in `find`.
        """
        wanted = parse_agent_id(agent_id)
        agent = self._ask(lambda way: way.get(wanted))
        if agent is None:
            raise AgentNotFoundError
        return agent

    def ping(self) -> None:
        """One round trip that asks for nothing: what every other call takes at least.

        Raises:
            UnavailableError: no server answers.
        """
        self._ask(lambda way: way.ping())

    def close(self) -> None:
        """Closes the connections; those of calls in progress when these end."""
        self._closed = True
        for way in self._route.ways:
            way.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, call: Callable[[Transport], T]) -> T:
        self._require_open()
        route, away = self._route, []
        for way in route.order():
            try:
                answer = call(way)
            except UnavailableError as error:
                route.failed(way)
                away.append(error)
            else:
                route.answered(way)
                return answer
        if len(away) > 1:
            raise away[1] from away[0]
        raise away[0]

    def _require_open(self) -> None:
        if self._closed:
            raise RuntimeError("the client is closed")
