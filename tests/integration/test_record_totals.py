"""Totals over time in the record, on both databases."""

from __future__ import annotations

from app.models.capacity import GpuType
from app.models.insight import PoolTotals, TotalsBy, TrendQuery
from app.record import Record
from tests.logs import START_MS

SLOT_MS = 300_000


def totals(pool: str, *, vram: float = 8.0, gpu: GpuType = GpuType.NVIDIA, online: int = 1) -> PoolTotals:
    return PoolTotals(
        agent_type="desktop",
        pool_name=pool,
        gpu_type=gpu,
        online=online,
        placeable=online,
        gpu_vram_available_gb=vram,
        gpu_vram_total_gb=2 * vram,
        cpu_cores_available=4,
        cpu_cores_physical=8,
    )


async def trend(record: Record, until_ms: int, **query: object) -> dict[str, list[float]]:
    """Free VRAM by series."""
    found = await record.totals.trend(TrendQuery(**query), until_ms=until_ms)  # type: ignore[arg-type]  # as given
    return {series.name: [point.gpu_vram_available_gb for point in series.points] for series in found}


async def test_an_empty_record_has_no_series(record: Record) -> None:
    assert await trend(record, START_MS) == {}


async def test_of_a_slot_the_newest_sample_stays(record: Record) -> None:
    slot_ms = START_MS - START_MS % SLOT_MS
    await record.totals.keep([totals("a", vram=1.0)], at_ms=slot_ms + 1)
    await record.totals.keep([totals("a", vram=3.0)], at_ms=slot_ms + 3)
    await record.totals.keep([totals("a", vram=2.0)], at_ms=slot_ms + 2)
    assert await trend(record, slot_ms + 10) == {"": [3.0]}


async def test_series_by_pool_and_gpu_type_largest_first(record: Record) -> None:
    for step in range(3):
        rows = [
            totals("small", vram=1.0 + step),
            totals("large", vram=10.0 + step),
            totals("large", vram=5.0, gpu=GpuType.AMD),
        ]
        await record.totals.keep(rows, at_ms=START_MS + step * SLOT_MS)
    until_ms = START_MS + 3 * SLOT_MS
    by_pool = await trend(record, until_ms, by=TotalsBy.POOL_NAME)
    assert by_pool == {"large": [15.0, 16.0, 17.0], "small": [1.0, 2.0, 3.0]}
    assert list(by_pool) == ["large", "small"]
    assert await trend(record, until_ms, by=TotalsBy.GPU_TYPE) == {"nvidia": [11.0, 13.0, 15.0], "amd": [5.0] * 3}
    assert await trend(record, until_ms, pool_name="small") == {"": [1.0, 2.0, 3.0]}
    assert await trend(record, until_ms, agent_type="infra") == {}


async def test_pools_without_a_name_of_their_own_count_in_sums_and_make_no_series(record: Record) -> None:
    await record.totals.keep([totals("large", vram=10.0), totals("", vram=100.0)], at_ms=START_MS)
    assert await trend(record, START_MS) == {"": [110.0]}
    assert await trend(record, START_MS, by=TotalsBy.GPU_TYPE) == {"nvidia": [110.0]}
    assert await trend(record, START_MS, by=TotalsBy.POOL_NAME) == {"large": [10.0]}


async def test_a_long_time_comes_in_few_points_with_the_newest(record: Record) -> None:
    start_ms = START_MS - START_MS % (100 * SLOT_MS)
    for step in range(601):
        await record.totals.keep([totals("a", vram=float(step))], at_ms=start_ms + step * SLOT_MS)
    points = (await trend(record, start_ms + 600 * SLOT_MS, hours=50.0))[""]
    assert 190 <= len(points) <= 290
    assert points[-1] == 600.0


async def test_what_is_past_its_retention_goes(record: Record) -> None:
    await record.totals.keep([totals("a", vram=1.0)], at_ms=START_MS)
    later_ms = START_MS + 31 * 86_400_000
    await record.totals.keep([totals("a", vram=2.0)], at_ms=later_ms)
    assert await trend(record, later_ms, hours=744.0 * 2) == {"": [2.0]}
