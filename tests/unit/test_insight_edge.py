"""Explain, fit and summary at the HTTP edge."""

from __future__ import annotations

import pytest

from app.errors import IndexRebuildingError
from app.models.capacity import CapacityQuery, GpuType
from app.models.insight import Explanation, Fit, Hidden, Miss, Overall, PoolTotals
from tests.indexing import agent_id
from tests.mock_ports import Ports

SIZE = "min_gpu_vram_gb=12&min_cpu_cores=8&agent_type=infra&pool_name=a"


@pytest.fixture
def ports() -> Ports:
    return Ports()


async def test_reasons_are_told_with_the_nearest_misses(ports: Ports) -> None:
    ports.insight.explain.return_value = Explanation(
        agents=4,
        fitting=0,
        failing={"gpu_vram": 3, "gpu_vram+cpu_cores": 1},
        nearest=[
            Miss(
                agent_id=agent_id(1),
                pool_name="a",
                gpu_vram_available_gb=8.0,
                cpu_cores_available=8,
                lacks_gpu_vram_gb=4.0,
                fails=("gpu_vram",),
            )
        ],
        hidden=Hidden(cordoned=2),
        possible=True,
    )

    response = await ports.call("GET", f"/api/v1/capacity/explain?{SIZE}&gpu_type=amd&min_memory_gb=3")

    assert response.json() == {
        "agents": 4,
        "fitting": 0,
        "failing": {"gpu_vram": 3, "gpu_vram+cpu_cores": 1},
        "nearest": [
            {
                "agent_id": agent_id(1),
                "pool_name": "a",
                "gpu_vram_available_gb": 8.0,
                "cpu_cores_available": 8,
                "lacks_gpu_vram_gb": 4.0,
                "lacks_cpu_cores": 0,
                "lacks_memory_gb": 0.0,
                "fails": ["gpu_vram"],
            }
        ],
        "hidden": {"silent": 0, "busy": 0, "cordoned": 2},
        "possible": True,
    }
    size = CapacityQuery(min_gpu_vram_gb=12.0, min_cpu_cores=8, agent_type="infra", pool_name="a")
    (asked,) = ports.insight.explain.await_args.args
    assert asked == CapacityQuery(
        min_gpu_vram_gb=12.0,
        min_cpu_cores=8,
        agent_type="infra",
        pool_name="a",
        gpu_type=GpuType.AMD,
        min_memory_gb=3.0,
    )
    ports.insight.fit.return_value = Fit(tasks=3, agents=2, fragmentation=0.25)
    response = await ports.call("GET", f"/api/v1/capacity/fit?{SIZE}")
    assert response.text == '{"tasks":3,"agents":2,"fragmentation":0.25}'
    ports.insight.fit.assert_awaited_once_with(size)


async def test_totals_are_told_page_by_page(ports: Ports) -> None:
    row = PoolTotals(agent_type="infra", pool_name="a", gpu_type=GpuType.NVIDIA, online=2, gpu_vram_total_gb=16.0)
    ports.insight.summary.return_value = ([row], "2")
    ports.insight.overall.return_value = Overall(rows=[row], pools=4_711)

    response = await ports.call("GET", "/api/v1/capacity/summary?limit=2&agent_type=infra")

    assert response.json()[0]["gpu_vram_total_gb"] == 16.0
    assert response.headers["link"] == ('</api/v1/capacity/summary?limit=2&agent_type=infra&after=2>; rel="next"')
    assert response.headers["x-total-count"] == "4711"
    ports.insight.summary.assert_awaited_once_with(limit=2, agent_type="infra", pool_name=None, after=None)
    ports.insight.overall.assert_awaited_once_with(agent_type="infra")
    ports.insight.summary.return_value = ([], None)
    response = await ports.call("GET", "/api/v1/capacity/summary?after=2")
    assert "link" not in response.headers
    ports.insight.summary.assert_awaited_with(agent_type=None, pool_name=None, limit=100, after="2")
    response = await ports.call("GET", "/api/v1/capacity/summary?pool_name=a")
    assert "x-total-count" not in response.headers


async def test_totals_over_all_pools_in_one_answer(ports: Ports) -> None:
    row = PoolTotals(agent_type="infra", pool_name="", gpu_type=GpuType.NVIDIA, online=2, gpu_vram_total_gb=16.0)
    ports.insight.overall.return_value = Overall(rows=[row], pools=4_711)

    response = await ports.call("GET", "/api/v1/capacity/summary?by=gpu_type&agent_type=infra")

    assert [(one["pool_name"], one["online"]) for one in response.json()] == [("", 2)]
    ports.insight.overall.assert_awaited_once_with(agent_type="infra")
    ports.insight.summary.assert_not_awaited()


@pytest.mark.parametrize("call", ["explain", "fit", "summary"])
async def test_without_the_index_nobody_can_say(ports: Ports, call: str) -> None:
    getattr(ports.insight, call).side_effect = IndexRebuildingError()

    response = await ports.call("GET", f"/api/v1/capacity/{call}")

    assert (response.status_code, response.json()["code"]) == (503, "index_rebuilding")


@pytest.mark.parametrize(
    "target",
    [
        "explain?limit=5",
        "explain?wait_s=5",
        "explain?min_gpu_vram_gb=-1",
        "fit?gpu_type=amd",
        "fit?min_cpu_cores=0",
        "summary?limit=0",
        "summary?after=x",
        "summary?pool=a",
        "summary?by=agent_type",
    ],
)
async def test_what_these_calls_do_not_take(ports: Ports, target: str) -> None:
    response = await ports.call("GET", f"/api/v1/capacity/{target}")

    assert (response.status_code, response.json()["code"]) == (400, "invalid_query")
