"""What the client tells beyond lookups: waiting, reasons, totals and events; each the same on every way."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import redis

from app.client import AsyncCapacityClient, CapacityClient, Change, ChangeKind, InvalidQueryError, UnavailableError
from app.index.opening import Index
from app.models.identity import StreamId
from app.telemetry import LISTENERS
from tests.indexing import apply_everything, index_settings, opened_index
from tests.planning import KINDS, api, asker, fill, machine, number, numbers, report, sweep
from tests.servers import free_port
from tests.waiting import PATIENCE_S, wait_until, wait_until_async

FOR_EVER_S = 300
"""The longest wait there is: a search that waits to its end meets pytest's limit first."""


@pytest.fixture
def ways(redis_url: str, sqlite_record_url: str) -> Iterator[dict[str, str]]:
    fill(redis_url)
    sweep(redis_url)
    with api(redis_url, sqlite_record_url) as url:
        yield {"redis": redis_url, "http": url}


def later(action: Callable[[], None], *, after_s: float = 0.3) -> threading.Timer:
    timer = threading.Timer(after_s, action)
    timer.start()
    return timer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["redis", "http"])
def test_a_search_waits_until_something_fits(ways: dict[str, str], kind: str, way: str) -> None:
    ask = asker(kind, ways[way], timeout_s=0.5)
    assert numbers(ask(lambda client: client.find(40, wait_s=FOR_EVER_S))) == [4]
    assert ask(lambda client: client.find(100, 8)) == []
    # After more than the client's own limit for an answer.
    timer = later(lambda: report(ways["redis"], machine(2, 90.0, 4), machine(3, 200.0, 8)), after_s=1.2)
    assert numbers(ask(lambda client: client.find(100, 8, wait_s=FOR_EVER_S))) == [3]
    timer.join()
    started = time.monotonic()
    assert ask(lambda client: client.find(1000, wait_s=0.7)) == []
    assert time.monotonic() - started > 0.6


@pytest.mark.parametrize("kind", KINDS)
def test_both_ways_give_the_same_reasons_and_totals(ways: dict[str, str], kind: str) -> None:
    def ask_all(client: Any) -> list[Any]:
        return [
            client.explain(100, 8),
            client.explain(pool_name="training"),
            client.explain(8, gpu_type="amd", min_memory_gb=1, max_age_s=60),
            client.fit(12, 8),
            client.fit(0, 3, pool_name="default"),
            client.summary(),
            client.summary(agent_type="infra", pool_name="default"),
        ]

    async def ask_each(client: AsyncCapacityClient) -> list[Any]:
        return [await one for one in ask_all(client)]

    answers = [asker(kind, way)(ask_all if kind == "blocking" else ask_each) for way in ways.values()]
    assert answers[0] == answers[1]
    assert answers[0][0].possible is False
    assert [row.agent_type for row in answers[0][6]] == ["infra"]


def listened(url: str, count: int, **options: Any) -> tuple[list[Change], threading.Thread]:
    """Begins to listen with the blocking client; the list has `count` changes when the thread ends."""
    told: list[Change] = []

    def listen() -> None:
        with CapacityClient(url, timeout_s=1.0) as client:
            for change in client.events(**options):
                told.append(change)
                if len(told) == count:
                    return

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    return told, thread


def reads_the_feed(redis_url: str) -> bool:
    """Whether a client without the API waits for the next change, and so will miss none."""
    with redis.Redis.from_url(redis_url) as plain:
        return ("headroom-client", "xread") in [(one["name"], one["cmd"]) for one in plain.client_list()]


@pytest.mark.parametrize("way", ["redis", "http"])
def test_events_are_told_and_resumed(ways: dict[str, str], way: str) -> None:
    told, thread = listened(ways[way], 2, kinds=["capacity"], pool_name="p")
    listens = (lambda: LISTENERS._value.get() == 1) if way == "http" else (lambda: reads_the_feed(ways["redis"]))
    wait_until(listens, what="the listener")
    report(
        ways["redis"], machine(21, 5.0, 1, pool_name="p"), machine(22, 6.0, 1), machine(23, 7.0, 1, pool_name="p")
    )
    thread.join(PATIENCE_S)
    assert [(change.kind, number(change.agent_id or "")) for change in told] == [  # type: ignore[arg-type]  # is one
        (ChangeKind.CAPACITY, 21),
        (ChangeKind.CAPACITY, 23),
    ]
    again, thread = listened(ways[way], 2, after=str(told[0].version))
    thread.join(PATIENCE_S)
    assert [number(change.agent_id or "") for change in again] == [22, 23]  # type: ignore[arg-type]  # as above
    everything, thread = listened(ways[way], 1, after=StreamId(0))
    thread.join(PATIENCE_S)
    assert everything[0].kind is ChangeKind.RESET


@pytest.mark.parametrize("way", ["redis", "http"])
async def test_events_with_asyncio(ways: dict[str, str], way: str) -> None:
    async with AsyncCapacityClient(ways[way]) as client:
        kinds = [change.kind async for change in first(client.events(after="0-0"), 3)]
    assert kinds[0] is ChangeKind.RESET
    assert len(kinds) == 3


async def first(changes: AsyncIterator[Change], count: int) -> AsyncIterator[Change]:
    async for change in changes:
        yield change
        count -= 1
        if not count:
            return


def test_another_way_goes_on_where_the_first_one_was_lost(redis_url: str, sqlite_record_url: str) -> None:
    fill(redis_url)
    told: list[Change] = []
    with (
        api(redis_url, sqlite_record_url) as url,
        CapacityClient(url, fallback=redis_url, timeout_s=1.0) as client,
    ):
        events = client.events(after="0-0")
        told.append(next(events))
        told.append(next(events))
    # The API is gone, with its connections.
    with CapacityClient(url, fallback=redis_url, timeout_s=1.0) as client:
        told.append(next(client.events(after=told[-1].version)))
    assert told[0].version < told[1].version < told[2].version


def test_events_of_nobody_are_an_error() -> None:
    with (
        CapacityClient(f"http://127.0.0.1:{free_port()}", timeout_s=0.5) as client,
        pytest.raises(UnavailableError),
    ):
        next(client.events())
    with (
        CapacityClient(f"redis://127.0.0.1:{free_port()}", timeout_s=0.5) as client,
        pytest.raises(UnavailableError),
    ):
        next(client.events())


@pytest.mark.parametrize(
    "question",
    [
        lambda client: client.find(wait_s=-1),
        lambda client: client.find(wait_s=301),
        lambda client: client.find(wait_s=True),
        lambda client: next(client.events(kinds=["all"])),
        lambda client: next(client.events(after="now")),
        lambda client: client.fit(-1),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_sent(question: Callable[[Any], Any]) -> None:
    with CapacityClient("redis://127.0.0.1:1") as client, pytest.raises(InvalidQueryError):
        question(client)


@pytest.fixture
async def index(redis_url: str) -> AsyncIterator[Index]:
    async with opened_index(index_settings(redis_url)) as opened:
        yield opened


async def test_a_wait_without_the_api_survives_the_loss_of_the_feed(index: Index, redis_url: str) -> None:
    async with AsyncCapacityClient(redis_url, timeout_s=0.5) as client:
        waiting = asyncio.create_task(client.find(8, wait_s=FOR_EVER_S))
        await wait_until_async(lambda: reads_the_feed(redis_url), what="a search that waits")
        await index.capacity._client.delete(index.keys.events)
        await index.log.append([machine(1, 16.0, 4)])
        await apply_everything(index)
        assert numbers(await waiting) == [1]
