"""Totals are right however many pools there are: in metrics, at first paint, in widgets and over time."""

from __future__ import annotations

import msgspec
import pytest
from prometheus_client import REGISTRY

from app.models.capacity import CapacityPage, GpuType
from app.models.insight import Overall, PoolTotals
from app.service.gauges import Gauges
from tests.mock_ports import Ports
from workers.sampler import Sampler

POOLS = 1_234
TYPES = ("desktop", "infra")


def row(agent_type: str, pool: str, *, agents: int = 1, gpu: GpuType = GpuType.NVIDIA) -> PoolTotals:
    return PoolTotals(
        agent_type=agent_type,
        pool_name=pool,
        gpu_type=gpu,
        online=agents,
        placeable=agents,
        gpu_vram_available_gb=8.0 * agents,
        gpu_vram_total_gb=10.0 * agents,
        cpu_cores_available=2 * agents,
        cpu_cores_physical=4 * agents,
    )


class ManyPools:
    """An insight into pools of one agent each, half of them of either type."""

    def __init__(self) -> None:
        self.rows = [row(one, f"pool {n}") for one in TYPES for n in range(POOLS // 2)]

    async def summary(self, *, limit: int, **_: object) -> tuple[list[PoolTotals], str | None]:
        return self.rows[:limit], str(limit) if limit < POOLS else None

    async def overall(self, **_: object) -> Overall:
        return Overall(rows=[row(one, "", agents=POOLS // 2) for one in TYPES], pools=POOLS)


@pytest.fixture
def ports() -> Ports:
    ports = Ports()
    many = ManyPools()
    ports.insight.summary.side_effect = many.summary
    ports.insight.overall.side_effect = many.overall
    ports.index.find.return_value = CapacityPage(agents=[], total=0)
    return ports


async def test_gauges_add_up_and_name_few_pools(ports: Ports) -> None:
    ports.health.health.side_effect = None
    await Gauges(ports.insight, ports.health, timeout_s=5.0).refresh()
    samples = [one for metric in REGISTRY.collect() if metric.name == "headroom_agents" for one in metric.samples]
    online = [one for one in samples if one.labels["status"] == "online"]
    assert sum(one.value for one in online) == POOLS
    assert len({one.labels["pool"] for one in online}) == 51
    other = [one for one in online if one.labels["pool"] == "other"]
    assert {one.labels["agent_type"]: one.value for one in other} == {
        "desktop": POOLS // 2 - 50,
        "infra": POOLS // 2,
    }


@pytest.mark.parametrize("path", ["/", "/pools"])
async def test_the_first_paint_says_how_much_it_shows(ports: Ports, path: str) -> None:
    text = (await ports.call("GET", path)).text
    assert ("8" if path == "/" else "50") + " of 1,234" in text
    if path == "/":
        # 1,234 agents with 8 of 10 GB each
        assert "9,872 GB" in text
        assert "12.1 TB" in text


async def test_widgets_add_up(ports: Ports) -> None:
    figures = (await ports.call("GET", "/widgets/pools.json")).json()
    assert figures["vram_total_gb"] == 10.0 * POOLS


async def test_what_is_kept_over_time_adds_up(ports: Ports) -> None:
    ports.index.now_ms.return_value = 1
    await Sampler(ports.insight, ports.index, ports.totals, every_s=300.0).sample()
    kept: list[PoolTotals] = ports.totals.keep.await_args.args[0]
    assert sum(one.online for one in kept) == POOLS
    assert len(kept) == 202


def test_what_moved_between_two_readings_never_counts_below_zero() -> None:
    named = [row("desktop", "a", agents=5)]
    overall = Overall(rows=[row("desktop", "", agents=3), row("desktop", "", agents=2, gpu=GpuType.AMD)], pools=2)
    assert overall.beyond(named) == [row("desktop", "", agents=2, gpu=GpuType.AMD)]
    assert msgspec.json.encode(overall.beyond([])) == msgspec.json.encode(overall.rows)
