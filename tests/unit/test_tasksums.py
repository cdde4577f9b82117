"""How much fits from few counts: exact where they tell, from below where they do not."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from app.index.tasksums import TaskSums

SLICE = 32


def summed(rooms: list[int], most_tasks: int, calls: int) -> tuple[TaskSums, int]:
    """The sums over agents with so much room, and how many calls it took."""
    sums = TaskSums(most_tasks)
    for call in range(calls):
        asked = sums.unknown(SLICE)
        assert len(asked) <= SLICE
        if not asked:
            return sums, call
        assert all(1 <= k <= most_tasks for k in asked)
        sums.learn(asked, [sum(room >= k for room in rooms) for k in asked])
    return sums, calls


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 32), max_size=20), st.integers(32, 65_536))
def test_agents_that_take_few_tasks_cost_few_calls(rooms: list[int], most_tasks: int) -> None:
    sums, calls = summed(rooms, most_tasks, 64)
    assert (sums.total(), sums.agents) == (sum(rooms), sum(room > 0 for room in rooms))
    assert calls <= 5


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 65_536), max_size=12))
def test_a_few_huge_agents_are_summed_exactly(rooms: list[int]) -> None:
    sums, _ = summed(rooms, 65_536, 64)
    assert (sums.total(), sums.agents) == (sum(rooms), sum(room > 0 for room in rooms))


def test_what_the_bound_leaves_unknown_is_counted_from_below() -> None:
    rooms = list(range(0, 65_536, 7))
    sums, calls = summed(rooms, 65_536, 64)
    assert calls == 64
    assert 0.99 * sum(rooms) < sums.total() <= sum(rooms)


def test_a_task_that_nobody_can_take_is_asked_for_once() -> None:
    sums = TaskSums(0)
    assert sums.unknown(SLICE) == [1]
    sums.learn([1], [0])
    assert (sums.unknown(SLICE), sums.total(), sums.agents) == ([], 0, 0)
