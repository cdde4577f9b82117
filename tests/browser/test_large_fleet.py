"""The dashboard with 10,000 agents. How long its frames take is reported, not asserted: machines differ."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from itertools import pairwise
from random import Random
from typing import Any

from playwright.sync_api import CDPSession, Page, expect

from tests.browser.browsing import report, until_live
from tests.processes import Headroom
from tests.servers import wait_until

Open = Callable[..., Page]
Measured = Callable[[str, str], None]

AGENTS = 10_000
_CATEGORIES = "devtools.timeline,disabled-by-default-devtools.timeline"


def fill(house: Headroom) -> int:
    """Reports all of them, and returns how many have at least 16 GB and 8 cores."""
    random = Random(7)
    fitting = 0
    for first in range(0, AGENTS, 1000):
        beats = []
        for number in range(first, first + 1000):
            vram, cores = round(random.choice((0, 8, 16, 24, 48, 80)) * random.random(), 1), random.randint(1, 64)
            fitting += vram >= 16 and cores >= 8
            beats.append(report(str(uuid.UUID(int=random.getrandbits(128), version=4)), vram=vram, cores=cores,
                                pool_name=f"pool-{number % 12}", hostname=f"host-{number:05}"))  # fmt: skip
        assert house.post("/api/v1/heartbeats", {"heartbeats": beats}).status_code == 202
    wait_until(lambda: house.get("/api/v1/health").json()["reporting"] == AGENTS, timeout_s=90, what="the fleet")
    return fitting


class Trace:
    """The browser's own record of what it did."""

    def __init__(self, session: CDPSession) -> None:
        self._session = session
        self._events: list[dict[str, Any]] = []
        self._complete = False
        session.on("Tracing.dataCollected", lambda data: self._events.extend(data["value"]))
        session.on("Tracing.tracingComplete", self._end)
        session.send("Tracing.start", {"categories": _CATEGORIES, "transferMode": "ReportEvents"})

    def _end(self, _data: object) -> None:
        self._complete = True

    def frames_ms(self, page: Page) -> list[float]:
        """How long the page's own work took in each frame that it drew, shortest first."""
        self._session.send("Tracing.end")
        deadline = time.monotonic() + 30
        while not self._complete and time.monotonic() < deadline:
            page.wait_for_timeout(50)
        frames = [event for event in self._events if event["name"] == "FireAnimationFrame" and "dur" in event]
        assert frames, json.dumps(sorted({event["name"] for event in self._events}))
        return sorted(event["dur"] / 1000 for event in frames)


def test_ten_thousand_agents_are_of_use(
    own_house: Callable[..., Headroom], open_page: Open, measured: Measured
) -> None:
    house = own_house()
    fitting = fill(house)
    begun = time.monotonic()
    page = open_page("/?vram=16&cores=8", at=house.url)
    until_live(page)
    expect(page.locator("#fit-count")).to_have_text(f"{fitting:,} agents fit")
    measured("10,000 agents, from the address to all of them shown", f"{time.monotonic() - begun:.1f} s")
    slider = page.locator("#vram-range")
    box = slider.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 8, box["y"] + box["height"] / 2)
    page.mouse.down()
    trace = Trace(page.context.new_cdp_session(page))
    for step in range(1, 61):
        page.mouse.move(box["x"] + 8 + (box["width"] - 16) * step / 60, box["y"] + box["height"] / 2)
    page.mouse.up()
    frames_ms = trace.frames_ms(page)
    median_ms, slow_ms = frames_ms[len(frames_ms) // 2], frames_ms[int(0.95 * (len(frames_ms) - 1))]
    measured(
        "10,000 agents, script time of a frame while dragging",
        f"{median_ms:.1f} ms (median), {slow_ms:.1f} ms (95 %), {len(frames_ms)} frames, software rendering",
    )
    page.locator("#q").fill("host-00007")
    page.locator("#show").select_option("all")
    expect(page.locator("#list tr")).to_have_count(1)
    page.goto("/widgets/")
    page.frame_locator("iframe[title='Fleet map']").get_by_text(f"of {AGENTS:,} agents fit").wait_for()
    frame_times = page.evaluate(
        """() => new Promise((done) => {
            const times = [];
            const step = (at) => (times.push(at) > 30 ? done(times) : requestAnimationFrame(step));
            requestAnimationFrame(step);
        })"""
    )
    gaps = sorted(later - earlier for earlier, later in pairwise(frame_times))
    measured("10,000 agents, gallery, from frame to frame", f"{gaps[len(gaps) // 2]:.0f} ms (median)")
