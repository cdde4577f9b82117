"""What a batch makes of an agent, and how late transitions find their place: rules without a database."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from app.models.heartbeat import Heartbeat
from app.models.identity import AgentId, StreamId
from app.models.log import LogEntry
from app.models.order import Boot, Outcome
from app.models.transition import Reason, Transition, TransitionKind
from app.record.chain import Link, chain
from app.record.fold import NEVER, Fold, slot_of
from tests.indexing import agent_id, heartbeat
from tests.logs import START_MS, beat, change, silence, stream_id


def folded(*entries: LogEntry, slot_length_ms: int = 60_000) -> Fold:
    fold = Fold({}, offline_after_ms=90_000, slot_length_ms=slot_length_ms)
    fold.take(entries)
    return fold


def test_entries_are_taken_in_stream_order_whatever_their_order_in_the_batch() -> None:
    fold = folded(beat(2, heartbeat(1, vram=2.0)), beat(1, heartbeat(1, vram=1.0)))
    assert fold.outcomes == {Outcome.APPLIED: 2}
    assert fold.newest_heartbeat == stream_id(2)
    assert fold.states[agent_id(1)].registered_ms == START_MS + 1000


def test_a_boot_that_comes_back_leaves_the_other_among_the_retired() -> None:
    state = folded(
        beat(0, heartbeat(1, boot_id="a", seq=1)),
        beat(1, heartbeat(1, boot_id="b", seq=1)),
        beat(100, heartbeat(1, boot_id="a", seq=2)),
    ).states[agent_id(1)]
    assert state.order.holder == Boot("a", 2)
    assert state.order.retired == (Boot("b", 1),)


def test_an_agent_that_was_only_refused_is_not_touched() -> None:
    fold = folded(beat(1, heartbeat(1, seq=2)))
    again = Fold(fold.states, offline_after_ms=90_000, slot_length_ms=60_000)
    again.take([beat(1, heartbeat(1, seq=2)), beat(2, heartbeat(1, seq=1))])
    assert (again.touched, again.marked, again.newest_heartbeat) == (set(), set(), NEVER)


def test_what_a_dead_recorder_had_read_leaves_the_same_boots_as_in_its_turn() -> None:
    sent = [
        beat(second, heartbeat(1, boot_id=boot_id, seq=seq))
        for second, boot_id, seq in [(1, "a", 1), (2, "a", 2), (3, "a", 3), (4, "b", 1), (5, "a", 4)]
    ]
    in_turn = folded(*sent).states[agent_id(1)].order
    assert in_turn.retired == (Boot("a", 4),)
    fold = folded(sent[0])
    for entry in (sent[3], sent[1], sent[2], sent[4]):
        fold.take([entry])
    assert fold.states[agent_id(1)].order == in_turn
    assert fold.marked == {agent_id(1)}


def test_a_new_boot_whose_first_entry_was_held_up_takes_over_with_its_next() -> None:
    fold = folded(beat(1, heartbeat(1, boot_id="a", seq=1)), beat(3, heartbeat(1, boot_id="a", seq=2)))
    fold.take([beat(2, heartbeat(1, boot_id="b", seq=1)), beat(4, heartbeat(1, boot_id="b", seq=2))])
    assert fold.states[agent_id(1)].order.holder == Boot("b", 2)
    assert fold.outcomes[Outcome.CLONED] == 0


def test_a_silence_older_than_the_last_heartbeat_marks_nothing() -> None:
    fold = folded(beat(0, heartbeat(1)), beat(50, heartbeat(1)), silence(91, 1, after_s=0))
    assert fold.marked == set()
    assert fold.states[agent_id(1)].offline_at == NEVER


def test_samples_of_a_forgotten_agent_are_dropped_with_its_history() -> None:
    fold = folded(
        beat(0, heartbeat(1)),
        beat(60, heartbeat(1)),
        change(61, 1, TransitionKind.FORGOTTEN),
        beat(62, heartbeat(1)),
        beat(120, heartbeat(1)),
    )
    assert fold.erased == {agent_id(1)}
    assert [sample.at_ms - START_MS for sample in fold.samples[agent_id(1)]] == [62_000]


def test_a_slot_starts_at_a_multiple_of_its_length() -> None:
    assert [slot_of(ms, 60) for ms in (0, 59, 60, 61, 119, 120)] == [0, 0, 60, 60, 60, 120]


def test_entries_without_a_body_are_skipped() -> None:
    assert folded(LogEntry(stream_id(0), None, "broken")).states == {}


def test_a_transition_of_an_unknown_agent_makes_no_state() -> None:
    fold = folded(silence(91, 1, after_s=0))
    assert fold.states == {}
    assert len(fold.transitions) == 1


KINDS = st.sampled_from(
    [TransitionKind.ONLINE, TransitionKind.BUSY, TransitionKind.OFFLINE, TransitionKind.FORGOTTEN]
)


@given(
    said=st.lists(st.tuples(st.integers(0, 1), KINDS), min_size=1, max_size=14),
    arrival=st.randoms(use_true_random=False),
    sizes=st.lists(st.integers(1, 5), min_size=14, max_size=14),
)
def test_the_chain_is_the_same_in_whatever_order_transitions_arrive(
    said: Sequence[tuple[int, TransitionKind]], arrival: object, sizes: Sequence[int]
) -> None:
    log = [
        (
            StreamId(START_MS, n),
            Transition(agent_id=agent_id(who), kind=kind, reason=Reason.HEARTBEAT, position=NEVER, at_ms=START_MS),
        )
        for n, (who, kind) in enumerate(said)
    ]
    late = list(log)
    arrival.shuffle(late)  # type: ignore[attr-defined]  # Hypothesis hands out a random.Random of its own
    table: dict[AgentId, dict[StreamId, Link]] = {}
    while late:
        size = sizes[len(late) - 1]
        batch, late = late[:size], late[size:]
        deliver(table, batch)
        deliver(table, batch)  # again, as after a lost acknowledgement
    expected: dict[AgentId, dict[StreamId, Link]] = {}
    for entry_id, transition in log:
        links = expected.setdefault(transition.agent_id, {})
        links[entry_id] = link(entry_id, links[max(links)].to_status if links else None, transition.kind.value)
    assert table == expected


def deliver(table: dict[AgentId, dict[StreamId, Link]], batch: Sequence[tuple[StreamId, Transition]]) -> None:
    """What `record_transitions` does, with dictionaries for tables."""
    first = min(entry_id for entry_id, _ in batch)
    before: dict[AgentId, Link] = {}
    recorded: dict[AgentId, dict[StreamId, Link]] = {}
    for who, links in table.items():
        earlier = [entry_id for entry_id in links if entry_id < first]
        if earlier:
            before[who] = links[max(earlier)]
        recorded[who] = {entry_id: kept for entry_id, kept in links.items() if entry_id >= first}
    chained = chain(batch, before, recorded)
    for row in chained.moved:
        here = StreamId(row["entry_ms"], row["entry_n"])
        table[row["agent_id"]][here] = link(here, row["from_status"], table[row["agent_id"]][here].to_status)
    for row in chained.new:
        here = StreamId(row["entry_ms"], row["entry_n"])
        table.setdefault(row["agent_id"], {})[here] = link(here, row["from_status"], row["to_status"])
    assert not chained.grown  # nobody flaps here


def link(entry_id: StreamId, from_status: str | None, to_status: str) -> Link:
    return Link(entry_id=entry_id, from_status=from_status, to_status=to_status, last_id=entry_id)


def test_heartbeats_of_one_batch_count_by_outcome() -> None:
    said = [Heartbeat(agent_id=agent_id(1), boot_id="b", seq=seq) for seq in (3, 3, 1, 4)]
    fold = folded(*(beat(n, each) for n, each in enumerate(said)))
    assert fold.outcomes == {Outcome.APPLIED: 2, Outcome.DUPLICATE: 1, Outcome.REORDERED: 1}
