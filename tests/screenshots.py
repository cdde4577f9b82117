"""Pictures of every page and widget, of a simulated fleet with a day behind it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec
from playwright.sync_api import Browser, Page
from sqlalchemy import insert

from app.models.insight import PoolTotals
from app.record import open_record
from app.record.tables import agent_history
from app.settings import Settings
from tests.browser.browsing import chromium, find_chromium, until_live
from tests.processes import ROOT, Headroom, start_up
from tests.servers import wait_until

DESK = (1440, 900)
PHONE = (390, 844)
IN_PHONE = 334  # what a page on a phone leaves for a frame
AGENTS = 1_200
_DAY_MS = 86_400_000
_SLOT_MS = 300_000


class Shot(NamedTuple):
    """One picture; `whole`: the whole page, not only what a screen shows of it."""

    name: str
    path: str
    size: tuple[int, int] = DESK
    scheme: str = "light"
    whole: bool = True


def shots(agent_id: str) -> Iterator[Shot]:
    pages = {
        "fleet": "/",
        "fit": "/?vram=16&cores=8",
        "pools": "/pools",
        "waiting": "/waiting",
        "health": "/health",
        "agent": f"/agents/{agent_id}",
        "gallery": "/widgets/",
        "docs": "/docs",
    }
    for name, path in pages.items():
        yield Shot(f"{name}-light", path)
        yield Shot(f"{name}-dark", path, scheme="dark")
        yield Shot(f"{name}-phone", path, size=PHONE)
    widgets = {
        "fit": ("?min_vram=16&min_cores=8", (420, 100)),
        "pools": ("", (420, 232)),
        "map": ("?min_vram=16&min_cores=8", (520, 340)),
        "trend": ("", (420, 190)),
        "agent": (f"?agent_id={agent_id}", (420, 128)),
    }
    for name, (query, size) in widgets.items():
        path = f"/widgets/{name}{query}"
        for scheme in ("light", "dark"):
            yield Shot(f"widget-{name}-{scheme}", path, size=size, scheme=scheme, whole=False)
        yield Shot(f"widget-{name}-phone", path, size=(IN_PHONE, size[1]), whole=False)


def for_docs(agent_id: str) -> Iterator[Shot]:
    yield Shot("fleet-light", "/?vram=8&cores=4", size=(1280, 900), whole=False)
    yield Shot("fleet-dark", "/?vram=8&cores=4", size=(1280, 900), scheme="dark", whole=False)
    yield Shot("fleet-phone", "/?vram=8&cores=4", size=PHONE, whole=False)
    yield Shot("pools", "/pools", size=(1280, 760), whole=False)
    yield Shot("agent", f"/agents/{agent_id}", size=(1280, 800), whole=False, scheme="dark")
    yield Shot("waiting", "/waiting", size=(1280, 440), whole=False)
    yield Shot("health", "/health", size=(1280, 400), whole=False, scheme="dark")
    yield Shot("widgets", "/widgets/", size=(1280, 1000), whole=False)


@contextmanager
def simulated() -> Iterator[tuple[Headroom, str]]:
    """A fleet that reports, some of it cordoned, and calls and tasks that wait; with an agent that has a GPU."""
    with tempfile.TemporaryDirectory(prefix="headroom-shots-") as folder:
        data_dir = Path(folder)
        with start_up(data_dir, "--no-agent", "--simulate", str(AGENTS)) as house:
            house.until_ready()
            wait_until(lambda: house.get("/api/v1/health").json()["reporting"] > 0.9 * AGENTS, timeout_s=60)
            agent_id = prepare(house)
            metrics = house.get(f"/api/v1/agents/{agent_id}").json()["resource_metrics"]
            summary = house.get("/api/v1/capacity/summary").json()
            asyncio.run(remember_a_day(data_dir, summary, agent_id, metrics))
            yield house, agent_id


async def remember_a_day(
    data_dir: Path, summary: list[dict[str, Any]], agent_id: str, metrics: dict[str, Any]
) -> None:
    """Gives the record the totals of a day on which people work, and the samples of an agent that they work on."""
    record = open_record(Settings(data_dir=data_dir))
    now_ms = round(1000 * time.time())
    samples = []
    try:
        for ago in range(_DAY_MS // _SLOT_MS, 0, -1):
            at_ms = now_ms - ago * _SLOT_MS
            hour = (at_ms / 3_600_000) % 24
            await record.totals.keep([at_work(row, hour, ago) for row in summary], at_ms=at_ms)
            samples.append(
                {
                    "agent_id": agent_id,
                    "slot_ms": at_ms - at_ms % _SLOT_MS,
                    "at": datetime.fromtimestamp(at_ms / 1000, UTC),
                    "status": "online",
                    "resource_metrics": worked_on(metrics, hour, ago),
                }
            )
        async with record.database.writing() as connection:
            await connection.execute(insert(agent_history), samples)
    finally:
        await record.close()


def worked_on(metrics: dict[str, Any], hour: float, seed: int) -> dict[str, Any]:
    """Somebody trains in the morning, and at night a longer run takes half of it."""
    load = 0.9 if 8.5 < hour < 11.75 else 0.5 if 13 < hour < 17.5 or hour < 2.5 else 0.03
    load = min(1.0, load * (1 + 0.06 * math.sin(seed * 1.7)) + 0.02 * (seed % 3))
    return metrics | {
        "gpu_vram_available_gb": round(metrics["gpu_vram_total_gb"] * (1 - load), 2),
        "cpu_cores_available": round(metrics["cpu_cores_physical"] * (1 - 0.7 * load)),
        "cpu_percent": round(100 * 0.7 * load, 1),
    }


def at_work(row: dict[str, Any], hour: float, seed: int) -> PoolTotals:
    totals = msgspec.convert(row, PoolTotals)
    load = 0.28 * math.exp(-(((hour - 14.5) / 4.2) ** 2)) + 0.02 * math.sin(seed / 3 + len(totals.pool_name))
    return msgspec.structs.replace(
        totals,
        placeable=round(totals.placeable * (1 - load / 2)),
        gpu_vram_available_gb=totals.gpu_vram_available_gb * (1 - load),
        cpu_cores_available=round(totals.cpu_cores_available * (1 - load)),
    )


def take(browser: Browser, house: Headroom, shot: Shot, folder: Path) -> None:
    width, height = shot.size
    context = browser.new_context(
        base_url=house.url,
        viewport={"width": width, "height": height},
        color_scheme="dark" if shot.scheme == "dark" else "light",
        is_mobile=shot.name.endswith("-phone"),
        has_touch=shot.name.endswith("-phone"),
    )
    try:
        page = context.new_page()
        page.goto(shot.path)
        settle(page)
        page.screenshot(path=folder / f"{shot.name}.png", full_page=shot.whole)
    finally:
        context.close()


def settle(page: Page) -> None:
    if page.locator("#link-state").count():
        until_live(page)
    page.wait_for_load_state("load")
    page.wait_for_timeout(2_500)


def prepare(house: Headroom) -> str:
    """Cordons some agents, lets somebody wait, plans too much, and returns an agent with a GPU."""
    rows = house.get("/api/v1/agents/available-capacity", min_gpu_vram_gb=16, limit=20).json()
    with house.client as client:
        for row in rows[5:9]:
            cordon = {"reason": "new power supply", "actor": "ada", "expires_in_s": 14_400}
            client.patch(f"/api/v1/agents/{row['agent_id']}", json={"cordon": cordon})
        tasks = [
            {"name": name, "gpu_vram_gb": vram, "cpu_cores": 32}
            for name, vram in (("pretrain", 500), ("distill", 320), ("evaluate", 280))
        ]
        client.post("/api/v1/plan", json={"tasks": tasks}).raise_for_status()
    for vram, cores in ((500, 16), (500, 16), (1000, 64)):
        threading.Thread(target=wait, args=(house, vram, cores), daemon=True).start()
    agent_id: str = rows[0]["agent_id"]
    return agent_id


def wait(house: Headroom, vram: int, cores: int) -> None:
    """Asks for more than there is until the stack ends."""
    query = {"min_gpu_vram_gb": vram, "min_cpu_cores": cores, "wait_s": 300}
    with contextlib.suppress(httpx.TransportError):
        httpx.get(f"{house.url}/api/v1/agents/available-capacity", params=query, timeout=400, trust_env=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "build" / "screenshots")
    parser.add_argument("--docs", action="store_true", help="those that README and docs show")
    parser.add_argument("--only", default="", help="names that contain this")
    arguments = parser.parse_args()
    if not find_chromium():
        sys.stderr.write("There is no Chromium; name one in CHROMIUM.\n")
        return 1
    folder = ROOT / "docs" / "images" if arguments.docs else arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    with simulated() as (house, agent_id), chromium() as browser:
        chosen = for_docs(agent_id) if arguments.docs else shots(agent_id)
        for shot in chosen:
            if arguments.only in shot.name:
                take(browser, house, shot, folder)
                sys.stdout.write(f"{folder / shot.name}.png\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
