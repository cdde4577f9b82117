"""When the next heartbeat is due."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.host_agent.schedule import Schedule

TIMES = st.floats(min_value=0, max_value=1e9)


def schedule(seed: int = 0, interval_s: float = 30.0) -> Schedule:
    return Schedule(interval_s, random.Random(seed))


def test_the_mean_distance_is_the_wish() -> None:
    planned = schedule()
    gaps = [
        planned.after_answer(started_s=1000, now_s=1000.01, next_heartbeat_s=20.0) - 1000 for _ in range(2_000)
    ]
    assert sum(gaps) / len(gaps) == pytest.approx(20.0, rel=0.01)
    assert min(gaps) >= 19.0
    assert max(gaps) <= 21.0
    assert len(set(gaps)) > 1_900


def test_the_last_wish_holds_until_the_next() -> None:
    planned = schedule()
    planned.after_answer(started_s=0, now_s=0, next_heartbeat_s=300.0)
    assert planned.after_answer(started_s=0, now_s=0, next_heartbeat_s=None) == pytest.approx(300, rel=0.06)


@pytest.mark.parametrize(("wish", "taken"), [(1e-9, 0.05), (1e9, 3600.0), (float("inf"), 3600.0)])
def test_a_mad_wish_is_bounded(wish: float, taken: float) -> None:
    planned = schedule()
    planned.after_answer(started_s=0, now_s=0, next_heartbeat_s=wish)
    assert planned.interval_s == taken


@given(started_s=TIMES, lasted_s=st.floats(min_value=0, max_value=1e6), seed=st.integers(0, 99))
def test_it_is_never_due_in_the_past(started_s: float, lasted_s: float, seed: int) -> None:
    planned = schedule(seed)
    now_s = started_s + lasted_s
    assert planned.after_answer(started_s=started_s, now_s=now_s, next_heartbeat_s=None) > now_s
    assert planned.after_failure(now_s=now_s, retry_after_s=None) > now_s


def test_failures_are_followed_by_longer_and_longer_pauses_up_to_a_minute() -> None:
    pauses = [[], [], [], [], [], [], [], []]  # type: list[list[float]]
    for seed in range(300):
        planned = schedule(seed)
        for pause in pauses:
            pause.append(planned.after_failure(now_s=0, retry_after_s=None))
    for pause, base in zip(pauses, (1, 2, 4, 8, 16, 32, 60, 60), strict=True):
        assert min(pause) >= max(base * 0.75, 1.0)
        assert max(pause) <= min(base * 1.25, 60.0)
    assert all(len(set(pause)) > 100 for pause in pauses), "a fleet comes back spread out"


def test_a_weekend_of_failures_is_no_problem() -> None:
    planned = schedule()
    planned.failures = 10**6
    assert planned.after_failure(now_s=0, retry_after_s=None) <= 60


def test_the_server_may_ask_for_a_longer_pause_but_not_for_ever() -> None:
    assert 120 <= schedule().after_failure(now_s=0, retry_after_s=120) <= 150
    assert schedule().after_failure(now_s=0, retry_after_s=1e12) <= 4500
    assert schedule().after_failure(now_s=0, retry_after_s=-5) <= 1.25


def test_success_ends_the_backoff() -> None:
    planned = schedule()
    for _ in range(5):
        planned.after_failure(now_s=0, retry_after_s=None)
    planned.after_answer(started_s=0, now_s=0, next_heartbeat_s=None)
    assert planned.after_failure(now_s=0, retry_after_s=None) <= 1.25


def test_after_a_delivery_slept_through_the_next_is_not_close_behind() -> None:
    assert schedule().after_answer(started_s=0, now_s=3600, next_heartbeat_s=30) >= 3600 + 28.5
    assert schedule().after_answer(started_s=0, now_s=29, next_heartbeat_s=30) >= 29 + 28.5
    assert schedule().after_answer(started_s=0, now_s=5, next_heartbeat_s=30) <= 31.5
