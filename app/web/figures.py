"""Figures as people read them, for what the server renders; `static/js/format.js` is the same for scripts."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from app.models.insight import PoolTotals


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over any number of pools and GPU types, as text, with the shares that meters show (percent)."""

    agents: str
    placeable: str
    busy: str
    cordoned: str
    offline: str
    vram: str
    vram_total: str
    vram_share: str
    cores: str
    cores_total: str
    cores_share: str

    @classmethod
    def of(cls, rows: Iterable[PoolTotals]) -> Totals:
        rows = tuple(rows)
        vram, vram_total = (
            sum(row.gpu_vram_available_gb for row in rows),
            sum(row.gpu_vram_total_gb for row in rows),
        )
        cores, cores_total = (
            sum(row.cpu_cores_available for row in rows),
            sum(row.cpu_cores_physical for row in rows),
        )
        return cls(
            agents=whole(sum(row.online + row.busy + row.offline for row in rows)),
            placeable=whole(sum(row.placeable for row in rows)),
            busy=whole(sum(row.busy for row in rows)),
            cordoned=whole(sum(row.cordoned for row in rows)),
            offline=whole(sum(row.offline for row in rows)),
            vram=gigabytes(vram),
            vram_total=gigabytes(vram_total),
            vram_share=share(vram, vram_total),
            cores=whole(cores),
            cores_total=whole(cores_total),
            cores_share=share(cores, cores_total),
        )


def whole(number: float) -> str:
    return f"{number:,.0f}"


def tenths(number: float) -> str:
    return f"{number:,.1f}".removesuffix(".0")


def gigabytes(gb: float) -> str:
    if gb >= 10_240:
        return f"{tenths(gb / 1024)} TB"
    return f"{whole(gb) if gb >= 1000 else tenths(gb)} GB"


def share(part: float, of: float) -> str:
    return f"{100 * part / of if of > 0 else 0:.1f}"
