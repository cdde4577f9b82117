"""Gateway mode: many machines, one way out. Collects their heartbeats and sends them on in batches.

An agent needs no setting for it but its address: a gateway takes heartbeats as the API does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import msgspec
import uvicorn

from app.api.relay import RelayStatus, build_relay
from app.errors import StartupRefusedError, UnavailableError
from app.models.heartbeat import Heartbeat
from app.models.identity import AgentId
from workers.host_agent.clock import Clock, NeverStops, SystemClock
from workers.host_agent.config import Config
from workers.host_agent.delivery import Outcome, Sender, open_delivery
from workers.host_agent.schedule import Schedule

_PATH: Final = "/api/v1/heartbeats"
_LARGEST_BATCH: Final = 500
_MOST_AGENTS: Final = 20_000
_LONGEST_BACKOFF_S: Final = 10.0
_RETRY_AFTER_S: Final = 5.0
_JITTER: Final = 0.2
_KEEP_ALIVE_S: Final = 75
_BACKLOG: Final = 2048
_GRACE_S: Final = 3
# Shorter than an interval, longer than a hiccup. The server takes a heartbeat's arrival for the machine's sign
# of life, so what was held longer must not be sent: the machine may be gone by then.
_HELD_FOR_S: Final = 20.0
_AWAY_AFTER_S: Final = 5.0
_log = logging.getLogger("headroom.agent")


class _Held(NamedTuple):
    heartbeat: Heartbeat
    taken_s: float


class _Rejected(msgspec.Struct, frozen=True):
    index: int
    code: str = ""


class _BatchAnswer(msgspec.Struct, frozen=True):
    rejected: list[_Rejected] = []
    cloned: list[str] = []


_batch_answer = msgspec.json.Decoder(_BatchAnswer)


class Collector:
    """The newest heartbeat of each agent until it is sent on; the server and the sender's thread share it."""

    def __init__(self, clock: Clock, interval_s: float, rng: random.Random) -> None:
        self._clock = clock
        self._rng = rng
        self._lock = threading.Lock()
        self._held: dict[AgentId, _Held] = {}
        self._wish_s = interval_s
        self._failing_since_s: float | None = None
        self._cloned: frozenset[str] = frozenset()

    def take(self, heartbeats: Sequence[Heartbeat]) -> None:
        """Raises UnavailableError while no server is reached, so that agents with another address use it."""
        now_s = self._clock.now_s()
        full = False
        with self._lock:
            for heartbeat in heartbeats:
                if heartbeat.agent_id in self._held or len(self._held) < _MOST_AGENTS:
                    self._held[heartbeat.agent_id] = _Held(heartbeat, now_s)
                else:
                    full = True
            away = self._away(now_s)
        if away:
            raise UnavailableError("This gateway reaches no server", retry_after_s=_RETRY_AFTER_S)
        if full:
            raise UnavailableError("This gateway holds as many agents as it can", retry_after_s=_RETRY_AFTER_S)

    def is_cloned(self, agent_id: AgentId) -> bool:
        return agent_id in self._cloned

    def next_heartbeat_s(self) -> float:
        # Never later than the server wishes: it knows how long its agents may be silent.
        return round(self._wish_s * self._rng.uniform(1 - _JITTER, 1), 3)

    def status(self) -> RelayStatus:
        with self._lock:
            away = self._away(self._clock.now_s())
            return RelayStatus("no_server" if away else "ready", len(self._held))

    def batches(self) -> list[list[_Held]]:
        """Takes out all that is fresh enough to be sent."""
        oldest_s = self._clock.now_s() - _HELD_FOR_S
        with self._lock:
            fresh = [held for held in self._held.values() if held.taken_s >= oldest_s]
            self._held = {}
        return [fresh[start : start + _LARGEST_BATCH] for start in range(0, len(fresh), _LARGEST_BATCH)]

    def put_back(self, batch: Sequence[_Held]) -> None:
        """What could not be sent waits on, unless its agent has sent a newer one since."""
        with self._lock:
            for held in batch:
                self._held.setdefault(held.heartbeat.agent_id, held)

    def tell(self, outcome: Outcome, batch: Sequence[_Held]) -> None:
        """Remembers what the server said to a batch, and logs whom it rejected."""
        said = _read_batch_answer(outcome)
        for item in said.rejected:
            if item.index < len(batch):
                agent_id = batch[item.index].heartbeat.agent_id
                _log.warning("The server rejected the heartbeat of %s: %s", agent_id, item.code)
        with self._lock:
            if outcome.accepted or outcome.refused:
                self._failing_since_s = None
                # The answer speaks of this batch only; the others' flags stand.
                told = {held.heartbeat.agent_id for held in batch}
                self._cloned = frozenset(said.cloned) | (self._cloned - told)
                self._wish_s = outcome.next_heartbeat_s or self._wish_s
            elif self._failing_since_s is None:
                self._failing_since_s = self._clock.now_s()

    def _away(self, now_s: float) -> bool:
        return self._failing_since_s is not None and now_s - self._failing_since_s >= _AWAY_AFTER_S


class Forwarder:
    """Sends what is collected, a batch every `batch_s`, with a backoff while no server takes it."""

    def __init__(
        self,
        collector: Collector,
        sender: Sender,
        *,
        clock: Clock,
        batch_s: float,
        rng: random.Random,
        sleep: Callable[[float], object],
        stopping: Callable[[], bool],
    ) -> None:
        self._collector = collector
        self._sender = sender
        self._clock = clock
        self._batch_s = batch_s
        self._schedule = Schedule(batch_s, rng, longest_backoff_s=_LONGEST_BACKOFF_S)
        self._sleep = sleep
        self._stopping = stopping

    def run(self) -> None:
        """Returns when it is stopped, after a last try for what is still held."""
        while not self._stopping():
            self._sleep(self.send())
        for batch in self._collector.batches():
            outcome = self._sender.goodbye(_PATH, _pack(batch))
            if not outcome.accepted and not outcome.refused:
                # One wait for servers that are away is enough at a shutdown.
                break

    def send(self) -> float:
        """Sends all that is held; returns the seconds until the next time."""
        batches = self._collector.batches()
        while batches:
            batch = batches.pop(0)
            outcome = self._sender.deliver(_PATH, _pack(batch))
            self._collector.tell(outcome, batch)
            if outcome.accepted or outcome.refused:
                self._schedule.failures = 0
                continue
            for unsent in (batch, *batches):
                self._collector.put_back(unsent)
            now_s = self._clock.now_s()
            return self._schedule.after_failure(now_s=now_s, retry_after_s=outcome.retry_after_s) - now_s
        return self._batch_s


def serve(config: Config) -> int:
    """Runs the gateway until SIGTERM or SIGINT.

    Raises:
        StartupRefusedError: the address cannot be listened on, or the token or certificates cannot be read.
    """
    clock, rng = SystemClock(), random.Random()  # noqa: S311  # jitter, not secrets
    collector = Collector(clock, config.interval_s, rng)
    delivery = open_delivery(config, NeverStops(), clock)
    ended = threading.Event()
    forwarder = Forwarder(
        collector,
        delivery,
        clock=clock,
        batch_s=config.gateway_batch_s,
        rng=rng,
        sleep=ended.wait,
        stopping=ended.is_set,
    )
    with _listen(config.gateway_listen) as listener:
        server = uvicorn.Server(
            uvicorn.Config(
                build_relay(collector, token=config.gateway_token),
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                lifespan="off",
                ws="none",
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_GRACE_S,
            )
        )
        # uvicorn raises the signal that ended it once more; what is still held is sent after that.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        _log.info("Gateway on port %d sends to %s", listener.getsockname()[1], ", ".join(config.server))
        asyncio.run(_serve(server, listener, forwarder, ended))
    delivery.close()
    return 0


async def _serve(
    server: uvicorn.Server, listener: socket.socket, forwarder: Forwarder, ended: threading.Event
) -> None:
    def end_server(_task: asyncio.Task[None]) -> None:
        server.should_exit = True

    async with asyncio.TaskGroup() as tasks:
        forwarding = tasks.create_task(asyncio.to_thread(forwarder.run))
        # A gateway that takes heartbeats and sends nothing on would be worse than none.
        forwarding.add_done_callback(end_server)
        try:
            await server.serve(sockets=[listener])
        finally:
            ended.set()


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
    except (OSError, OverflowError) as error:
        raise StartupRefusedError(
            f"Cannot listen on {address} ({error}): choose another address with --gateway-listen"
        ) from error
    return listener


def _pack(batch: Sequence[_Held]) -> bytes:
    # A missing resource_metrics is a fault, null is none: written out even where there are none.
    documents = [{"resource_metrics": None, **msgspec.to_builtins(held.heartbeat)} for held in batch]
    return msgspec.msgpack.encode({"heartbeats": documents})


def _read_batch_answer(outcome: Outcome) -> _BatchAnswer:
    if outcome.accepted:
        with contextlib.suppress(msgspec.DecodeError):
            return _batch_answer.decode(outcome.body)
    return _BatchAnswer()
