"""What a batch of log entries makes of the agents it names. Rules only: no database is asked here.

Two facts decide an agent's status, whichever of their entries is recorded first: what its last heartbeat said,
and up to which heartbeat it was declared offline.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from app.models.agent import IndexedState
from app.models.capacity import AgentStatus
from app.models.heartbeat import Gpu, Heartbeat, ResourceMetrics
from app.models.identity import AgentId, StreamId
from app.models.log import LogEntry
from app.models.order import Boot, Order, Outcome, advance, recall
from app.models.transition import Transition, TransitionKind

NEVER: Final = StreamId(0, 0)


class Reported(msgspec.Struct, frozen=True):
    """What the last heartbeat said; metrics and GPUs outlive a goodbye that sends none."""

    agent_type: str
    pool_name: str
    hostname: str
    status: AgentStatus
    gpus: tuple[Gpu, ...]
    metrics: ResourceMetrics | None


class KeptSample(msgspec.Struct, frozen=True):
    """An agent's state at the end of a time slot."""

    agent_id: AgentId
    slot_ms: int
    at_ms: int
    status: AgentStatus
    metrics: ResourceMetrics | None


@dataclass(slots=True)
class AgentState:
    """One agent while a batch is folded.

    Attributes:
        reported: None for a row that cannot be read; the next heartbeat mends it.
        heartbeat_ms: receive time of the last applied heartbeat.
        offline_at: the heartbeat up to which the agent was declared offline.
    """

    agent_id: AgentId
    order: Order
    reported: Reported | None
    heartbeat_ms: int
    registered_ms: int
    offline_at: StreamId = NEVER
    forgotten_ms: int | None = None

    @property
    def status(self) -> AgentStatus:
        if self.reported is None or self.forgotten_ms is not None or self.offline_at >= self.order.last_id:
            return AgentStatus.OFFLINE
        return self.reported.status


@dataclass(slots=True)
class Fold:
    """Takes entries in stream order and keeps the newest state of each agent.

    Attributes:
        states: the agents of the batch that the record knows; new ones are added.
        touched: agents with an applied heartbeat.
        marked: agents whose status was changed by a transition, or of whose boots more is known.
        erased: agents whose kept history ends here.
        transitions: every transition, in order.
        newest_heartbeat: the greatest id that was applied.
    """

    states: dict[AgentId, AgentState]
    offline_after_ms: int
    slot_length_ms: int
    touched: set[AgentId] = field(default_factory=set)
    marked: set[AgentId] = field(default_factory=set)
    erased: set[AgentId] = field(default_factory=set)
    samples: dict[AgentId, list[KeptSample]] = field(default_factory=dict)
    transitions: list[tuple[StreamId, Transition]] = field(default_factory=list)
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    newest_heartbeat: StreamId = NEVER

    def take(self, entries: Iterable[LogEntry]) -> None:
        for entry in sorted(entries, key=_stream_id):
            if isinstance(entry.body, Heartbeat):
                self._take_heartbeat(entry.stream_id, entry.body)
            elif isinstance(entry.body, Transition):
                self._take_transition(entry.stream_id, entry.body)
            elif isinstance(entry.body, IndexedState):
                self._take_indexed(entry.stream_id, entry.body)

    def _take_heartbeat(self, stream_id: StreamId, heartbeat: Heartbeat) -> None:
        outcome, order = self._judge(stream_id, heartbeat.agent_id, _boot_of(heartbeat))
        self.outcomes[outcome] += 1
        if outcome is Outcome.APPLIED:
            self._apply(stream_id, order, heartbeat.agent_id, reported_by(heartbeat, self._reported(heartbeat)))
            return
        state = self.states.get(heartbeat.agent_id)
        if state is not None and state.order != order:
            state.order = order
            self.marked.add(state.agent_id)

    def _take_indexed(self, stream_id: StreamId, indexed: IndexedState) -> None:
        heartbeat, state = indexed.heartbeat, self.states.get(indexed.agent_id)
        boot = _boot_of(heartbeat)
        if state is not None and boot == state.order.holder:
            boot = None  # what came since named no boot
        outcome, order = self._judge(stream_id, heartbeat.agent_id, boot)
        if state is not None and _is_later_by_seq(state.order, stream_id, boot):
            outcome, order = Outcome.APPLIED, msgspec.structs.replace(state.order, holder=boot)
        if outcome is Outcome.APPLIED:
            reported = reported_anew(indexed, self._reported(heartbeat))
            self._apply(stream_id, recall(order, indexed.retired), heartbeat.agent_id, reported)
        state = self.states[heartbeat.agent_id]
        if indexed.silent and state.order.last_id == stream_id and state.offline_at < stream_id:
            state.offline_at = stream_id
            self.marked.add(state.agent_id)

    def _judge(self, stream_id: StreamId, agent_id: AgentId, boot: Boot | None) -> tuple[Outcome, Order]:
        state = self.states.get(agent_id)
        return advance(
            state.order if state is not None else None, stream_id, boot, offline_after_ms=self.offline_after_ms
        )

    def _reported(self, heartbeat: Heartbeat) -> Reported | None:
        state = self.states.get(heartbeat.agent_id)
        return None if state is None or state.forgotten_ms is not None else state.reported

    def _apply(self, stream_id: StreamId, order: Order, agent_id: AgentId, reported: Reported) -> None:
        state = self.states.get(agent_id)
        if state is None or state.forgotten_ms is not None:
            offline_at = NEVER if state is None else state.offline_at
            state = AgentState(agent_id, order, reported, stream_id.ms, stream_id.ms, offline_at)
            self.states[agent_id] = state
        else:
            self._close_slot(state, stream_id.ms)
            state.order = order
            state.reported = reported
            state.heartbeat_ms = stream_id.ms
        self.touched.add(agent_id)
        self.newest_heartbeat = max(self.newest_heartbeat, stream_id)

    def _close_slot(self, state: AgentState, now_ms: int) -> None:
        """A slot's newest heartbeat is known once the next slot begins: one sample written, none rewritten."""
        slot_ms = slot_of(state.heartbeat_ms, self.slot_length_ms)
        if state.reported is None or slot_of(now_ms, self.slot_length_ms) == slot_ms:
            return
        self.samples.setdefault(state.agent_id, []).append(
            KeptSample(state.agent_id, slot_ms, state.heartbeat_ms, state.reported.status, state.reported.metrics)
        )

    def _take_transition(self, stream_id: StreamId, transition: Transition) -> None:
        self.transitions.append((stream_id, transition))
        state = self.states.get(transition.agent_id)
        if state is None:
            return
        if state.order.last_id > transition.position:
            return  # a newer heartbeat supersedes it
        if transition.kind is TransitionKind.OFFLINE and transition.position > state.offline_at:
            state.offline_at = transition.position
            self.marked.add(state.agent_id)
        elif transition.kind is TransitionKind.FORGOTTEN:
            # Raising the last id keeps out what was sent before and is read later; boots start afresh.
            state.order = Order(last_id=transition.position)
            state.forgotten_ms = transition.at_ms
            self.marked.add(state.agent_id)
            self.erased.add(state.agent_id)
            self.samples.pop(state.agent_id, None)


def reported_by(heartbeat: Heartbeat, before: Reported | None) -> Reported:
    """A goodbye without metrics keeps the last ones; any other heartbeat without metrics clears them."""
    metrics, gpus = heartbeat.metrics, heartbeat.gpus
    if heartbeat.status is AgentStatus.OFFLINE and metrics is None and before is not None:
        metrics, gpus = before.metrics, gpus or before.gpus
    return Reported(
        agent_type=heartbeat.agent_type,
        pool_name=heartbeat.pool_name,
        hostname=heartbeat.hostname,
        status=heartbeat.status,
        gpus=gpus,
        metrics=metrics,
    )


def reported_anew(indexed: IndexedState, before: Reported | None) -> Reported:
    """What the last heartbeat said by all that is known: the index does not keep single GPUs, nor what an agent
    that fell silent had said its status was.
    """
    heartbeat = indexed.heartbeat
    status = heartbeat.status
    if indexed.silent:
        said = AgentStatus.OFFLINE if before is None else before.status
        status = AgentStatus.ONLINE if said is AgentStatus.OFFLINE else said
    return Reported(
        agent_type=heartbeat.agent_type,
        pool_name=heartbeat.pool_name,
        hostname=heartbeat.hostname,
        status=status,
        gpus=() if before is None else before.gpus,
        metrics=heartbeat.metrics,
    )


def slot_of(ms: int, slot_length_ms: int) -> int:
    """Start of the time slot that the moment falls into."""
    return ms - ms % slot_length_ms


def _boot_of(heartbeat: Heartbeat) -> Boot | None:
    if heartbeat.boot_id is None or heartbeat.seq is None:
        return None
    return Boot(heartbeat.boot_id, heartbeat.seq)


def _is_later_by_seq(order: Order, last_id: StreamId, boot: Boot | None) -> bool:
    """Whether the index gave the last recorded id to a heartbeat that came below it: see restore.lua."""
    if boot is None or order.holder is None or order.last_id != last_id:
        return False
    return boot.boot_id == order.holder.boot_id and boot.seq > order.holder.seq


def _stream_id(entry: LogEntry) -> StreamId:
    return entry.stream_id
