"""Fixtures of the fault tests: one row of docs/reliability.md each, on servers and processes of its own."""

from __future__ import annotations

import asyncio
import inspect
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from app.record import migrate
from tests.faults.fleet import ANSWERS_WITHIN_S, Answers, Lookup, quantile, took_ms, unanswered
from tests.faults.house import EVERYTHING, House
from tests.faults.nursery import Nursery
from tests.faults.rows import ROWS, row_of
from tests.servers import PostgresServer, ValkeyServer, start_postgres, start_valkey


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    started = Nursery()
    yield started
    started.close()


@pytest.fixture(scope="session")
def migrated_database(postgres_server: PostgresServer) -> str:
    """Name of a database that others are copied from: a copy takes less than a migration."""
    name = postgres_server.create_database()
    asyncio.run(migrate(postgres_server.database_url(name)))
    return name


@pytest.fixture
def database_url(postgres_server: PostgresServer, migrated_database: str) -> Iterator[str]:
    """A migrated record of the test's own, on the Postgres that all tests share."""
    name = postgres_server.create_database(template=migrated_database)
    yield postgres_server.database_url(name)
    postgres_server.drop_database(name)


@pytest.fixture
def servers() -> Iterator[ExitStack]:
    """Servers that a test starts for itself; they end after its processes."""
    with ExitStack() as stack:
        yield stack


OwnPostgres = Callable[..., PostgresServer]


@pytest.fixture
def own_postgres(servers: ExitStack) -> OwnPostgres:
    """Starts a Postgres with a migrated database `postgres`, to be broken."""

    def start(**config: str) -> PostgresServer:
        server = servers.enter_context(start_postgres(config=config))
        asyncio.run(migrate(server.url))
        return server

    return start


Build = Callable[..., House]


@pytest.fixture
def build(
    nursery: Nursery, servers: ExitStack, request: pytest.FixtureRequest, tmp_path: Path, row: Row
) -> Iterator[Build]:
    """Builds the test's house: servers, processes, a fleet that has reported, and a planner that asks."""
    houses: list[House] = []

    def build_one(
        *names: str,
        valkey: ValkeyServer | None = None,
        postgres: PostgresServer | None = None,
        agents: int = 8,
        lookups: bool = True,
        **settings: Any,
    ) -> House:
        server = valkey if valkey is not None else servers.enter_context(start_valkey())
        url = postgres.url if postgres is not None else request.getfixturevalue("database_url")
        house = House(nursery, server, url, tmp_path, settings)
        houses.append(house)
        house.open(names or EVERYTHING, agents=agents, lookups=lookups)
        row.watch(house.lookups)
        row.asked_s = house.asked_s
        return house

    yield build_one
    for house in houses:
        # Shown where the test failed.
        sys.stdout.write(house.logs(characters=4_000))
        house.close()


class Row:
    """What a test has to say about its row; `scripts/faults` makes a table of it.

    Attributes:
        asked_s: how long the lookups took that the test made itself, not the planner beside it.
    """

    def __init__(self, number: int, done: str) -> None:
        self.number = number
        self.done = done
        self.seen: list[str] = []
        self.asked_s: list[float] = []
        self._lookups = Answers()
        self._began = 0.0

    def watch(self, lookups: Answers) -> None:
        """The lookups that are made from now on are those during the fault."""
        self._lookups = lookups
        self._began = time.monotonic()

    def saw(self, what: str) -> None:
        self.seen.append(what)

    def require_answers(self, *, sources: frozenset[str] = frozenset({"index", "record"})) -> None:
        """Every lookup since the fault was answered in time, whichever store had to do it."""
        answers = self.lookups()
        assert answers
        self.require_any_answer()
        late = [answer for answer in answers if answer.took_s > ANSWERS_WITHIN_S]
        assert not late, f"{len(late)} of {len(answers)} lookups were late: {late[:3]}"
        refused = [answer for answer in answers if answer.status != 200]
        assert not refused, f"{len(refused)} of {len(answers)} lookups were refused: {refused[:3]}"
        assert {answer.source for answer in answers} <= sources

    def require_any_answer(self) -> None:
        """No lookup since the fault was left without an answer, be it a refusal."""
        without = unanswered(self.lookups())
        assert not without, f"{len(without)} of {len(self.lookups())} lookups got no answer: {without[:3]}"

    def lookups(self) -> list[Lookup]:
        """Every lookup since the fault."""
        return self._lookups.since(self._began)

    def took_ms(self) -> list[float]:
        """Of every lookup since the fault that was answered."""
        return [*took_ms(self.lookups()), *(1000 * took_s for took_s in self.asked_s)]


@pytest.fixture
def row(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Iterator[Row]:
    number = row_of(request.node.name)
    assert number in ROWS, "a fault test is named test_row_NN_what_happens"
    done = (inspect.getdoc(request.function) or "").partition("\n\n")[0].replace("\n", " ")
    told = Row(number, done.rstrip("."))
    yield told
    record_property("done", told.done)
    record_property("seen", "; ".join(told.seen))
    answered_ms = told.took_ms()
    if answered_ms:
        record_property("lookups", len(answered_ms))
        record_property("lookups_p99_ms", round(quantile(answered_ms, 0.99), 1))
        record_property("lookups_slowest_ms", round(max(answered_ms), 1))
    record_property("lookups_unanswered", len(unanswered(told.lookups())))
    # Whatever a test asks for: while an API and a store live there is an answer.
    told.require_any_answer()
