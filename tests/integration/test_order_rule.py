"""The order rule stands twice, in app/models/order.py and in order.lua; here they judge the same histories."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from app.index.clock import ManualClock
from app.models.heartbeat import Heartbeat
from app.models.identity import StreamId
from app.models.order import Boot, Order, Outcome, advance
from app.settings import Settings
from tests.indexing import agent_id, heartbeat, index_settings, opened_index
from tests.servers import ValkeyServer

OFFLINE_AFTER_MS = round(Settings().offline_after_s * 1000)

seqs = st.one_of(st.integers(0, 6), st.integers(2**53 - 2, 2**53 + 2), st.just(2**63 - 1))
boots = st.one_of(st.none(), st.tuples(st.sampled_from([f"boot {n}" for n in range(11)]), seqs))
steps = st.tuples(
    st.sampled_from([0, 1, 20, OFFLINE_AFTER_MS - 1, OFFLINE_AFTER_MS, 3 * OFFLINE_AFTER_MS]),
    st.integers(-2, 2),
    boots,
)


def entries_of(history: list[tuple[int, int, tuple[str, int] | None]]) -> list[tuple[StreamId, Heartbeat]]:
    ms, entries = 1_000_000_000_000, []
    for wait_ms, n, boot in history:
        ms += wait_ms
        boot_id, seq = boot if boot is not None else ("", None)
        entries.append((StreamId(ms, 5 + n), heartbeat(1, boot_id=boot_id, seq=seq)))
    return entries


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, min_size=1, max_size=40))
def test_lua_and_python_judge_alike(
    valkey_server: ValkeyServer, history: list[tuple[int, int, tuple[str, int] | None]]
) -> None:
    entries = entries_of(history)
    judged: list[Outcome] = []
    order: Order | None = None
    for stream_id, beat in entries:
        boot = None if beat.boot_id is None or beat.seq is None else Boot(beat.boot_id, beat.seq)
        outcome, order = advance(order, stream_id, boot, offline_after_ms=OFFLINE_AFTER_MS)
        judged.append(outcome)
    assert order is not None

    async def in_lua() -> tuple[list[Outcome], dict[bytes, bytes]]:
        valkey_server.flush()
        clock = ManualClock(entries[-1][0].ms)
        async with opened_index(index_settings(valkey_server.url), clock=clock) as index:
            outcomes = await index.upkeep.apply(entries)
            return outcomes, await index.capacity._client.hgetall(index.keys.agent(agent_id(1)))  # type: ignore[return-value]  # not decoded

    outcomes, fields = asyncio.run(in_lua())
    assert outcomes == judged
    assert fields[b"last_id"].decode() == str(order.last_id)
    if order.holder is None:
        assert fields[b"boot_id"] == fields[b"seq"] == b""
    else:
        assert (fields[b"boot_id"].decode(), int(fields[b"seq"])) == (order.holder.boot_id, order.holder.seq)
    lines = [line.split(" ", 1) for line in fields.get(b"boots", b"").decode().split("\n") if line]
    assert tuple(Boot(boot_id, int(seq)) for seq, boot_id in lines) == order.retired
