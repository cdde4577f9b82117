"""Bytes that are late, or that never arrive."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from app.index.scripts import load
from tests.faults.conftest import Build, Row
from tests.faults.fleet import ANSWERS_WITHIN_S, Answer, Caller, Reporter
from tests.faults.house import House
from tests.waiting import PATIENCE_S


def test_row_18_reply_lost(build: Build, row: Row) -> None:
    """The replies to 15 XADD, 5 applications, 4 reads and 4 acknowledgements are lost after these were carried
    out; agents repeat what got no 202.
    """
    house = build(takeover_after_s=0.5)
    commands = {b"XADD": 15, load("apply").sha.encode(): 5, b"XREADGROUP": 4, b"XACK": 4}
    repeated = 0
    for command, times in commands.items():
        lost = house.redis.lost
        house.redis.lose_replies_to(command, times=times)
        while house.redis.lost < lost + times:
            for reporter in house.fleet.reporters:
                repeated += report_until_taken(house, reporter)
    house.check(heal=False)
    row.require_answers()
    assert repeated > 5
    assert house.sql("SELECT count(*) FROM agent_events") == [(len(house.fleet.ids),)]
    row.saw(f"{house.redis.lost} replies lost, {repeated} heartbeats sent twice, each took effect once")


def report_until_taken(house: House, reporter: Reporter) -> int:
    """Reports, and repeats the very same heartbeat until it is acknowledged; returns how often."""
    repeated = 0
    status = house.fleet.report_one(reporter)
    while status != 202:
        repeated += 1
        assert repeated < 100
        status = house.fleet.repeat_one(reporter)
    return repeated


def test_row_19_redis_hangs(build: Build, row: Row) -> None:
    """Redis is stopped for five seconds."""
    house = build()
    calls: dict[str, Callable[[], Answer]] = {
        "heartbeat": lambda: house.call(
            "POST", f"/api/v1/agents/{house.fleet.ids[0]}/heartbeat", {"resource_metrics": {}}
        ),
        "search": lambda: house.get("/api/v1/agents/available-capacity"),
        "agent": lambda: house.get(f"/api/v1/agents/{house.fleet.ids[0]}/capacity"),
        "registry": lambda: house.get("/api/v1/agents"),
        "readyz": lambda: house.get("/readyz"),
    }
    slowest_s = 0.0
    house.valkey.pause()
    stopped = time.monotonic()
    while time.monotonic() < stopped + 5:
        for name, call in calls.items():
            started = time.monotonic()
            answer = call()
            slowest_s = max(slowest_s, time.monotonic() - started)
            assert answer.status == (503 if name == "heartbeat" else 200), (name, answer)
    house.valkey.resume()
    assert slowest_s < ANSWERS_WITHIN_S
    house.lookups.until(lambda answer: answer.source == "index")
    house.check()
    row.require_answers()
    row.saw(f"slowest answer {slowest_s:.2f} s; lookups from the record, heartbeats 503")


def test_row_20_cancelled_mid_command(build: Build, row: Row) -> None:
    """Redis's replies are so late that commands are given up halfway, with ten callers that each ask for an agent
    of their own, some of whom hang up.
    """
    house = build(agents=10, redis_timeout_s=0.2, redis_pool_size=8)
    wrong: list[str] = []
    given_up = 0
    stop = threading.Event()

    def ask(number: int) -> None:
        nonlocal given_up
        agent_id = house.fleet.ids[number]
        choose = random.Random(number)
        while not stop.is_set():
            caller = Caller(house.ports[0], timeout_s=choose.choice([0.1, 5.0]))
            try:
                answer = caller.call("GET", f"/api/v1/agents/{agent_id}/capacity")
                if answer.status != 200 or answer.body["agent_id"] != agent_id:
                    wrong.append(f"asked for {agent_id}, got {answer.body}")
            except OSError:
                given_up += 1
            finally:
                caller.close()

    callers = [threading.Thread(target=ask, args=(number,)) for number in range(10)]
    for thread in callers:
        thread.start()
    choose = random.Random(20)
    rounds = 40
    for _ in range(rounds):
        house.redis.reply_delay_s = choose.choice([0.0, 0.05, 0.19, 0.21, 0.4])
        time.sleep(0.1)
    house.redis.reply_delay_s = 0.0
    stop.set()
    for thread in callers:
        thread.join(PATIENCE_S)
    assert not wrong, wrong[:5]
    assert given_up > 0
    house.lookups.until(lambda answer: answer.source == "index")
    house.check()
    row.require_answers()
    connections = api_connections(house)
    assert connections <= 8
    row.saw(f"{given_up} callers hung up; no reply crossed; {connections} connections of at most 8 afterwards")


def api_connections(house: House) -> int:
    with house.valkey.client() as client:
        return sum(one["name"] == "headroom-api" for one in client.client_list())


def test_row_27_reply_to_commit_lost(build: Build, row: Row) -> None:
    """The replies to five COMMITs of the recorder are lost."""
    house = build()
    house.fleet.start()
    house.postgres.lose_replies_to(b"COMMIT", times=5)
    house.until(lambda: house.postgres.lost == 5, what="five lost replies")
    settled_s = house.check(heal=False)
    row.require_answers(sources=frozenset({"index"}))
    assert house.sql("SELECT count(*) FROM agent_events") == [(len(house.fleet.ids),)]
    row.saw(f"5 batches committed again without effect, quiet after {settled_s:.1f} s")
