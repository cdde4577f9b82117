"""Cordons in the record, and the events of flapping agents kept as one; on both databases."""

from __future__ import annotations

import random
from itertools import pairwise

from app.models.agent import Event, RecordedState
from app.models.capacity import CapacityQuery
from app.models.cordon import Cordon
from app.models.log import LogEntry
from app.models.transition import Reason, TransitionKind
from app.record import Record
from tests.indexing import agent_id, heartbeat
from tests.logs import START_MS, beat, change, moment, stream_id

DISK = Cordon(reason="new disk", actor="ada", since=moment(5))
HOUR = Cordon(reason="demo", actor="grace", since=moment(5), expires_at=moment(3600))


def cordon(at_s: float, number: int, what: Cordon = DISK) -> LogEntry:
    return change(at_s, number, TransitionKind.CORDONED, reason=Reason.OPERATOR, cordon=what)


def uncordon(at_s: float, number: int) -> LogEntry:
    return change(at_s, number, TransitionKind.UNCORDONED, reason=Reason.OPERATOR)


def flap(at_s: float, number: int = 1) -> LogEntry:
    kind = TransitionKind.ONLINE if round(at_s) % 2 else TransitionKind.BUSY
    return change(at_s, number, kind, flapping=True)


async def states(record: Record) -> dict[str, RecordedState]:
    return {state.agent.agent_id: state async for page in record.reader.states(page_size=10) for state in page}


async def recorded(record: Record, number: int = 1) -> Cordon | None:
    found = await record.agents.agent(agent_id(number))
    assert found is not None
    return found.cordon


async def events(record: Record, number: int = 1) -> list[Event]:
    """Oldest first."""
    history = await record.agents.history(agent_id(number), limit=100)
    assert history is not None
    return history.events[::-1]


async def searched(record: Record, *, now_s: float = 90.0) -> list[str]:
    """What a search finds; whoever was heard of in the 90 s before counts."""
    page = await record.capacity.find(CapacityQuery(), seen_since_ms=START_MS + round((now_s - 90) * 1000))
    assert page.total == len(page.agents)
    return [found.agent_id for found in page.agents]


async def test_a_cordon_of_the_log_is_kept_and_told(record: Record) -> None:
    await record.writer.write([beat(0, heartbeat(1)), beat(0, heartbeat(2)), cordon(5, 1)])
    assert await recorded(record) == DISK
    found = await states(record)
    assert (found[agent_id(1)].cordon, found[agent_id(1)].cordon_id) == (DISK, stream_id(5, 1))
    assert (found[agent_id(2)].cordon, found[agent_id(2)].cordon_id) == (None, None)
    await record.writer.write([beat(30, heartbeat(1, vram=1.0)), uncordon(31, 1)])
    assert await recorded(record) is None
    assert (await states(record))[agent_id(1)].cordon_id == stream_id(31, 1)


async def test_a_search_of_the_record_leaves_cordoned_agents_out(record: Record) -> None:
    await record.writer.write([beat(60, heartbeat(number)) for number in (1, 2, 3)])
    await record.writer.write([cordon(61, 1), cordon(61, 2, HOUR)])
    assert await searched(record) == [agent_id(3)]
    await record.writer.write([beat(3599, heartbeat(number)) for number in (1, 2, 3)])
    assert await searched(record, now_s=3599.0) == [agent_id(3)]
    assert await searched(record, now_s=3601.0) == [agent_id(3), agent_id(2)]
    # A clock of Redis that was ahead lets no cordon end early.
    ahead = {"seen_since_ms": START_MS + 3_511_000, "now_ms": START_MS + 3_599_000}
    page = await record.capacity.find(CapacityQuery(), **ahead)
    assert [found.agent_id for found in page.agents] == [agent_id(3)]


async def test_what_was_said_later_holds_whichever_comes_first(record: Record) -> None:
    await record.writer.write([beat(0, heartbeat(1))])
    await record.cordons.set_cordon(agent_id(1), None, position=stream_id(9, 1))
    await record.cordons.set_cordon(agent_id(1), DISK, position=stream_id(5, 1))
    assert await recorded(record) is None
    await record.writer.write([cordon(5, 1), cordon(10, 1, HOUR), uncordon(9, 1)])
    assert await recorded(record) == HOUR


async def test_the_operator_and_the_recorder_write_the_same(record: Record) -> None:
    await record.writer.write([beat(0, heartbeat(1)), change(0, 1, TransitionKind.ONLINE)])
    await record.cordons.set_cordon(agent_id(1), DISK, position=stream_id(5, 1))
    at_once = await events(record)
    for _ in range(2):
        await record.writer.write([cordon(5, 1)])
        assert await events(record) == at_once
    assert [(event.from_status, event.to_status) for event in at_once] == [
        (None, TransitionKind.ONLINE),
        (None, TransitionKind.CORDONED),
    ]
    assert at_once[1] == Event(
        at=moment(5),
        from_status=None,
        to_status=TransitionKind.CORDONED,
        reason=Reason.OPERATOR,
        cordon=DISK,
    )


async def test_cordons_stand_beside_the_chain_of_statuses(record: Record) -> None:
    await record.writer.write([beat(0, heartbeat(1)), change(0, 1, TransitionKind.ONLINE)])
    await record.writer.write([cordon(5, 1), change(6, 1, TransitionKind.BUSY), uncordon(7, 1)])
    await record.writer.write([change(8, 1, TransitionKind.ONLINE)])
    assert [event.from_status for event in await events(record)] == [
        None,
        None,
        TransitionKind.ONLINE,
        None,
        TransitionKind.BUSY,
    ]


async def test_an_agent_may_be_cordoned_before_its_first_heartbeat_is_recorded(record: Record) -> None:
    await record.cordons.set_cordon(agent_id(1), DISK, position=stream_id(5, 1))
    assert await states(record) == {}
    await record.writer.write([beat(0, heartbeat(1)), cordon(5, 1)])
    assert await recorded(record) == DISK


async def test_a_forgotten_agent_comes_back_without_its_cordon(record: Record) -> None:
    for number, position in ((1, stream_id(6, 1)), (2, None)):
        await record.writer.write([beat(0, heartbeat(number)), cordon(5, number)])
        await record.agents.forget(agent_id(number), position=position)
    await record.writer.write([beat(7, heartbeat(1)), beat(7, heartbeat(2))])
    assert (await recorded(record, 1), await recorded(record, 2)) == (None, None)
    await record.writer.write([change(6, 1, TransitionKind.FORGOTTEN), cordon(5, 1)])
    assert await recorded(record, 1) is None


async def test_a_whole_pool_is_cordoned_in_one_transaction(record: Record) -> None:
    await record.writer.write([beat(0, heartbeat(number)) for number in range(1, 6)])
    await record.cordons.set_cordons({agent_id(n): stream_id(5, n) for n in (1, 2, 3)}, DISK)
    assert [await recorded(record, n) for n in range(1, 6)] == [DISK, DISK, DISK, None, None]


async def test_the_changes_of_a_flapping_agent_are_one_event(record: Record) -> None:
    await record.writer.write([beat(0, heartbeat(1)), change(0, 1, TransitionKind.ONLINE)])
    entries = [flap(at_s) for at_s in range(2, 40)]
    for entry in entries[:3]:
        await record.writer.write([entry])
    await record.writer.write(entries[3:])
    await record.writer.write(entries[10:20])
    await record.writer.write([change(900, 1, TransitionKind.BUSY)])
    assert [(event.to_status, event.changes, event.at, event.last_at) for event in await events(record)] == [
        (TransitionKind.ONLINE, 1, moment(0), None),
        (TransitionKind.ONLINE, 38, moment(2), moment(39)),
        (TransitionKind.BUSY, 1, moment(900), None),
    ]


async def test_the_chain_holds_with_flapping_and_late_entries(record: Record) -> None:
    """Whichever batches the entries come in, each event starts from what the one before led to."""
    order = random.Random(7)
    await record.writer.write([beat(0, heartbeat(1)), change(0, 1, TransitionKind.ONLINE)])
    entries = [
        change(
            at_s,
            1,
            order.choice((TransitionKind.BUSY, TransitionKind.ONLINE, TransitionKind.OFFLINE)),
            flapping=at_s // 10 % 2 == 0,
        )
        for at_s in range(1, 81)
    ]
    shuffled = [entry for part in range(0, 80, 8) for entry in order.sample(entries[part : part + 8], 8)]
    while shuffled:
        count = order.randint(1, 6)
        await record.writer.write(shuffled[:count])
        del shuffled[:count]
        chain = await events(record)
        assert chain[0].from_status is None
        assert all(after.from_status == before.to_status for before, after in pairwise(chain))
