"""Listeners in memory: what each is told, what it may leave unread, and what all may together."""

from __future__ import annotations

import asyncio
import itertools
from unittest.mock import AsyncMock, Mock

import pytest

from app.errors import IndexUnavailableError
from app.models.change import Change, ChangeKind, EventFilter
from app.models.identity import StreamId
from app.service.audience import Audience
from app.service.feed import FeedHub
from tests.indexing import agent_id

EVERYTHING = EventFilter()


def encode(change: Change) -> bytes:
    return f"{change.version} ".encode()


def audience(hub: FeedHub | None = None, **bounds: int) -> Audience:
    return Audience(hub or FeedHub(AsyncMock(newest=AsyncMock(return_value=StreamId(0)))), encode, **bounds)


def change(number: int, kind: ChangeKind = ChangeKind.CAPACITY, **fields: str) -> Change:
    named = {} if kind in {ChangeKind.RESET, ChangeKind.REBUILD} else {"agent_id": agent_id(1), **fields}
    return Change(version=StreamId(number), kind=kind, **named)  # type: ignore[arg-type]  # texts all of them


async def test_each_listener_is_told_what_its_filter_wants() -> None:
    everybody = audience()
    kinds = [None, frozenset({ChangeKind.CORDON}), frozenset({ChangeKind.CAPACITY, ChangeKind.REBUILD})]
    filters = [
        EventFilter(agent_type=agent_type, pool_name=pool_name, kinds=some)
        for agent_type, pool_name, some in itertools.product((None, "desktop", "infra"), (None, "a"), kinds)
    ]
    listeners = {wanted: (await everybody.join(wanted))[0] for wanted in filters}
    places = itertools.product(ChangeKind, ("desktop", "infra"), ("a", "b"))
    changes = [
        change(number, kind, agent_type=agent_type, pool_name=pool)
        for number, (kind, agent_type, pool) in enumerate(places)
    ]
    everybody.take(changes)
    for wanted, listener in listeners.items():
        assert await listener.next() == b"".join(encode(each) for each in changes if wanted.wants(each))
        everybody.leave(wanted, listener)
    assert (everybody._listeners, everybody._wanting, everybody._buffers.size) == ({}, {}, 0)


async def test_a_change_costs_nothing_for_filters_that_do_not_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    everybody = audience()
    for number in range(100):
        await everybody.join(EventFilter(pool_name=f"pool {number}"))
    asked = Mock(side_effect=AssertionError)
    monkeypatch.setattr(EventFilter, "wants", asked)
    encoded = Mock(return_value=b"x")
    everybody._encode = encoded
    everybody.take([change(1, agent_type="desktop", pool_name="pool 7"), change(2, pool_name="nobody's")])
    assert encoded.call_count == 1


async def test_what_all_have_left_unread_is_bounded_and_shared_parts_count_once() -> None:
    everybody = audience(most_bytes=10_000, most_bytes_in_all=1_000)
    listeners = [(await everybody.join(EVERYTHING))[0] for _ in range(500)]
    everybody.take([change(number) for number in range(10)])
    assert everybody._buffers.size == len(await listeners[0].next())
    deaf, _ = await everybody.join(EventFilter(agent_type="desktop"))
    for listener in listeners:
        listener.clear()
    for number in range(1, 400):
        everybody.take([change(number, agent_type="desktop")])
        for listener in listeners:
            await listener.next()
        assert everybody._buffers.size <= 1_000
    assert deaf.lost.is_set()
    assert not any(listener.lost.is_set() for listener in listeners)


async def test_a_listener_that_leaves_too_much_unread_is_dropped_alone() -> None:
    everybody = audience(most_bytes=50)
    deaf, reader = [(await everybody.join(EVERYTHING))[0] for _ in range(2)]
    for number in range(20):
        everybody.take([change(number)])
        assert await reader.next() == encode(change(number))
    assert (deaf.lost.is_set(), reader.lost.is_set()) == (True, False)
    assert everybody._buffers.size == len(encode(change(19)))


async def test_who_is_ahead_of_this_process_waits_for_it_and_is_told_what_comes_after() -> None:
    """Another process told it of version 3; this one has read 1."""
    feed = AsyncMock(newest=AsyncMock(return_value=StreamId(1)))
    hub = FeedHub(feed)
    everybody = audience(hub)
    await everybody.join(EventFilter(agent_type="infra"))
    feed.newest.return_value = StreamId(4)
    joining = asyncio.create_task(everybody.join(EVERYTHING, after=StreamId(3)))
    await asyncio.sleep(0)
    feed.read.return_value = [change(2), change(3), change(4)]
    await hub.run_once()
    listener, position = await joining
    assert position == StreamId(4)
    everybody.take([change(5)])
    assert await listener.next() == encode(change(5))


async def test_who_has_a_version_of_a_feed_that_is_lost_does_not_wait() -> None:
    everybody = audience()
    _, position = await everybody.join(EVERYTHING, after=StreamId(99))
    assert position == StreamId(0)


async def test_a_process_that_reads_nothing_turns_those_away_that_are_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.service.feed._REACH_S", 0.01)
    feed = AsyncMock(newest=AsyncMock(return_value=StreamId(1)))
    everybody = audience(FeedHub(feed))
    await everybody.join(EventFilter(agent_type="infra"))
    feed.newest.return_value = StreamId(4)
    with pytest.raises(IndexUnavailableError):
        await everybody.join(EVERYTHING, after=StreamId(3))
    assert everybody._count == 1
