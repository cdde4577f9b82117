"""The API: ended under load, and with a listener that never reads."""

from __future__ import annotations

import socket
import threading
import time

from tests.faults.conftest import Build, Row
from tests.faults.fleet import agent_ids
from tests.faults.house import House
from tests.waiting import PATIENCE_S

HALF_A_HEARTBEAT = (
    b"POST /api/v1/heartbeats HTTP/1.1\r\nHost: headroom\r\nContent-Type: application/json\r\n"
    b'Content-Length: 1000\r\n\r\n{"heartbeats": ['
)


def test_row_47_api_ends_under_load(build: Build, row: Row) -> None:
    """One of three APIs is killed and another gets SIGTERM while heartbeats go to all of them; to the second one
    somebody never finishes sending.
    """
    house = build("ingest", "recorder", "reaper", "api", "api", "api", agents=12)
    killed, terminated = [process for process in house.processes if process.log.count("API listens")][1:3]
    house.fleet.start(every_s=0.002)
    others = [house.another_fleet(agent_ids(6, first=100 * (number + 1))) for number in range(2)]
    for fleet in others:
        fleet.report()
        fleet.start(every_s=0.002)
    with socket.create_connection(("127.0.0.1", house.ports[2]), timeout=PATIENCE_S) as slow:
        slow.sendall(HALF_A_HEARTBEAT)
        killed.kill()
        started = time.monotonic()
        terminated.terminate()
        # Waiting for the slow one would take for ever.
        terminated.until_ended()
        drained_s = time.monotonic() - started
        told = slow.recv(65_536)
        assert told.startswith(b"HTTP/1.1 503"), told
    for fleet in (house.fleet, *others):
        fleet.stop()
        assert set(fleet.refused) <= {0, 503}
    house.check(heal=False)
    row.require_answers(sources=frozenset({"index"}))
    accepted = sum(fleet.accepted for fleet in (house.fleet, *others))
    row.saw(f"{accepted} acknowledged heartbeats survived, SIGTERM: ended after {drained_s:.1f} s")


def test_row_47_api_drains_what_is_under_way(build: Build, row: Row) -> None:
    """An API gets SIGTERM while Redis takes half a second to answer twenty of its callers."""
    # Time enough for all twenty on a busy machine: what is not done by then is not drained but cut off.
    house = build(lookups=False, shutdown_after_s=20.0)
    house.redis.reply_delay_s = 0.5
    statuses: list[int] = []

    def report(number: int) -> None:
        reporter = house.fleet.reporters[number % len(house.fleet.reporters)]
        body: dict[str, object] = {"resource_metrics": {}}
        statuses.append(house.call("POST", f"/api/v1/agents/{reporter.agent_id}/heartbeat", body).status)

    callers = [threading.Thread(target=report, args=(number,)) for number in range(20)]
    for caller in callers:
        caller.start()
    house.until(lambda: api_is_asked(house), what="callers in the API")
    api = house.by_name["api"]
    api.terminate()
    api.until_ended()
    for caller in callers:
        caller.join(PATIENCE_S)
    assert statuses == [202] * 20
    house.redis.reply_delay_s = 0.0
    house.ports.clear()
    house.start("api")
    house.until_answering(house.ports[0])
    house.move_callers()
    house.check()
    row.saw("SIGTERM: 20 requests under way were answered 202 first")


def api_is_asked(house: House) -> bool:
    with socket.create_connection(("127.0.0.1", house.ports[0]), timeout=PATIENCE_S):
        return house.redis.under_way >= 20


def test_row_48_listener_never_reads(build: Build, row: Row) -> None:
    """A listener to the events never reads, another one does, and the whole fleet changes again and again."""
    house = build(agents=500)
    with socket.socket() as deaf, socket.socket() as eager:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for listener in (deaf, eager):
            listener.connect(("127.0.0.1", house.ports[0]))
            listener.sendall(b"GET /api/v1/events HTTP/1.1\r\nHost: headroom\r\n\r\n")
        heard = Ear(eager)
        house.until(lambda: house.counted("api", "headroom_listeners") == 2, what="two listeners")
        house.until(lambda: dropped_after_another_round(house), what="the end of the deaf one")
        house.until(lambda: house.counted("api", "headroom_listeners") == 1, what="one listener")
        house.until_quiet()
        heard_before = heard.size
        house.fleet.report_batch()
        house.until(lambda: heard.size > heard_before, what="events for the one who reads")
    heard.thread.join(PATIENCE_S)
    house.check(heal=False)
    row.require_answers(sources=frozenset({"index"}))
    row.saw(f"dropped after 1 MiB unread; the other listener had {heard.size / 2**20:.1f} MiB and went on")


def dropped_after_another_round(house: House) -> bool:
    assert house.fleet.report_batch().status == 202
    return house.counted("api", "headroom_dropped_listeners_total") == 1


class Ear:
    """Reads all that comes."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.size = 0
        self.thread = threading.Thread(target=self._listen, name="ear", daemon=True)
        self.thread.start()

    def _listen(self) -> None:
        try:
            while chunk := self._listener.recv(65_536):
                self.size += len(chunk)
        except OSError:
            return
