"""Commands that are sent again and again are written once, and are the same bytes."""

from __future__ import annotations

from typing import Any

import pytest
from redis import Connection

from app.index import shortcut
from app.index.keys import Keys
from app.index.packing import Repeated, packing
from app.models.capacity import CapacityQuery


@pytest.mark.parametrize("with_total", [False, True])
@pytest.mark.parametrize("query", [CapacityQuery(limit=10), CapacityQuery(min_cpu_cores=12, limit=3)])
def test_a_question_asked_again_is_the_same_bytes(query: CapacityQuery, *, with_total: bool) -> None:
    connection: Any = packing(Connection)()
    first = shortcut.commands(Keys(), query, with_total=with_total)
    again = shortcut.commands(Keys(), query, with_total=with_total)
    assert first is not None
    assert again is first
    assert isinstance(first, Repeated)
    assert connection.pack_commands(first) == connection.pack_commands(list(first))


def test_another_question_is_not_taken_for_one_asked_before() -> None:
    query = CapacityQuery(min_gpu_vram_gb=8.0, min_cpu_cores=4, limit=10)
    others = [
        CapacityQuery(min_gpu_vram_gb=8.0, min_cpu_cores=8, limit=10),
        CapacityQuery(min_gpu_vram_gb=8.0, min_cpu_cores=4, limit=11),
        CapacityQuery(min_gpu_vram_gb=8.0, min_cpu_cores=4, limit=10, agent_type="infra"),
        CapacityQuery(min_gpu_vram_gb=8.0, min_cpu_cores=4, limit=10, pool_name="training"),
    ]
    asked = {str(shortcut.commands(Keys(), one)) for one in (query, *others)}
    asked.add(str(shortcut.commands(Keys(1), query)))
    assert len(asked) == len(others) + 2
    # What is counted depends on the memory asked for; what is read does not.
    more = CapacityQuery(min_gpu_vram_gb=9.0, min_cpu_cores=4, limit=10)
    assert shortcut.commands(Keys(), more) == shortcut.commands(Keys(), query)
    assert shortcut.commands(Keys(), more, with_total=True) != shortcut.commands(Keys(), query, with_total=True)
