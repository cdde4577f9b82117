"""Widgets in frames, as web components on pages of others, as pictures and as JSON."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.browsing import Watch, report, until_live
from tests.processes import Headroom
from tests.waiting import PATIENCE_S, wait_until

Open = Callable[..., Page]

POOL = "widgets"


@pytest.fixture(scope="module")
def agent_id(house: Headroom) -> str:
    """One of two agents of the pool, with 24 GB and 8 cores free; the other has 8 GB and 4 cores."""
    ids = [str(uuid.uuid4()) for _ in range(2)]
    beats = [
        report(ids[0], vram=24.0, cores=8, pool_name=POOL, hostname="big"),
        report(ids[1], vram=8.0, cores=4, pool_name=POOL, hostname="small"),
    ]
    assert house.post("/api/v1/heartbeats", {"heartbeats": beats}).status_code == 202
    wait_until(lambda: all(house.get(f"/api/v1/agents/{one}").is_success for one in ids), what="the agents")
    return ids[0]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_arguments: Any) -> None:
        """The test's output is not its log."""


@pytest.fixture
def other_site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder served on another origin, and its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield tmp_path, f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(PATIENCE_S)


def test_each_widget_shows_its_figures(house: Headroom, agent_id: str, open_page: Open) -> None:
    page = open_page(f"/widgets/fit?min_vram=6&min_cores=2&pool={POOL}")
    body = page.locator("#widget")
    expect(body).to_contain_text("6 GB + 2 cores in widgets")
    expect(body).to_contain_text("2 agents fit")
    expect(body).to_contain_text("room for 5 such tasks")
    page.goto("/widgets/pools")
    expect(body).to_contain_text(POOL)
    page.goto(f"/widgets/agent?agent_id={agent_id}")
    expect(body).to_contain_text("big")
    expect(body).to_contain_text("24 GB of 48 GB")
    page.goto(f"/widgets/map?pool={POOL}&min_vram=10")
    expect(body).to_contain_text("1 of 2 agents fit")
    page.goto("/widgets/trend")
    expect(body).to_contain_text("free")
    assert house.url in page.url


def test_a_widget_follows_what_happens(house: Headroom, open_page: Open) -> None:
    page = open_page("/widgets/fit?pool=follows")
    expect(page.locator("#widget")).to_contain_text("0 agents fit")
    beat = report(str(uuid.uuid4()), vram=8.0, cores=4, pool_name="follows")
    assert house.post("/api/v1/heartbeats", {"heartbeats": [beat]}).status_code == 202
    expect(page.locator("#widget")).to_contain_text("1 agent fits")


def test_the_gallery_shows_each_with_lines_that_work(house: Headroom, agent_id: str, open_page: Open) -> None:
    page = open_page("/widgets/")
    until_live(page)
    assert agent_id
    expect(page.locator("iframe")).to_have_count(5)
    for frame in page.frames[1:]:
        frame.locator("#widget").wait_for()
    for view in ("fit", "pools", "map", "trend", "agent"):
        assert page.request.get(page.locator(f"[data-line='{view}-JSON']").inner_text()).ok
        assert isinstance(page.request.get(page.locator(f"[data-line='{view}-Rows']").inner_text()).json(), list)
    page.locator("[data-copy='fit-Component']").click()
    expect(page.locator("[data-copy='fit-Component']")).to_have_text("Copied")
    assert house.url in page.locator("[data-line='-Script']").inner_text()


def test_other_dashboards_read_the_json(house: Headroom, agent_id: str) -> None:
    ask: dict[str, Any] = {"min_vram": 6, "min_cores": 2, "pool": POOL}
    plain = house.get("/widgets/fit.json", **ask).json()
    assert (plain["agents"], plain["tasks"], plain["fits"]) == (2, 5, True)
    shields = house.get("/widgets/fit.json", **ask, form="shields").json()
    assert shields["schemaVersion"] == 1
    assert (shields["label"], shields["message"]) == ("6 GB + 2 cores in widgets", "2 agents fit")
    (row,) = house.get("/widgets/pools.json", pool=POOL, form="rows").json()
    assert (row["pool"], row["placeable"], row["vram_free_gb"]) == (POOL, 2, 32.0)
    assert house.get("/widgets/agent.json", agent_id=agent_id).json()["name"] == "big"
    assert "24 GB, 8 cores free" in house.get("/widgets/agent.svg", agent_id=agent_id).text


def test_a_typing_error_in_an_address_is_an_error(house: Headroom) -> None:
    assert house.get("/widgets/fit.json", min_vrem=6).status_code == 400
    assert house.get("/widgets/fit", theme="pink").status_code == 400
    assert house.get("/widgets/nothing").status_code == 404
    assert house.get("/widgets/agent.json", agent_id=str(uuid.uuid4())).status_code == 404


def component(site: tuple[Path, str], house: Headroom) -> str:
    folder, url = site
    (folder / "index.html").write_text(
        f"<!doctype html><link rel=icon href=data:,><title>Ours</title>"
        f"<script src='{house.url}/widgets/headroom-widget.js' defer></script>"
        f"<headroom-widget view='fit' min-vram='4' theme='dark'></headroom-widget>",
        encoding="utf-8",
    )
    return url


def test_the_component_works_on_a_page_of_others_that_may_frame_it(
    own_house: Callable[..., Headroom], other_site: tuple[Path, str], open_page: Open, watches: list[Watch]
) -> None:
    house = own_house("--frame-ancestors", f"'self' {other_site[1]}")
    page = open_page("/livez", at=house.url)
    watches[0].expected = lambda fault: fault.startswith("request to another host: " + other_site[1])
    page.goto(component(other_site, house))
    widget = page.frame_locator("headroom-widget iframe").locator("#widget")
    expect(widget).to_contain_text("0 agents fit")
    assert page.frames[1].evaluate("document.documentElement.dataset.theme") == "dark"
    page.evaluate("document.querySelector('headroom-widget').setAttribute('view', 'pools')")
    expect(widget).to_contain_text("free VRAM")


def test_others_may_not_frame_it_unless_the_setting_says_so(
    house: Headroom, other_site: tuple[Path, str], open_page: Open, watches: list[Watch]
) -> None:
    page = open_page("/livez")
    watches[0].expected = lambda fault: "frame-ancestors" in fault or other_site[1] in fault
    page.goto(component(other_site, house))
    page.wait_for_timeout(1000)
    assert page.frame_locator("headroom-widget iframe").locator("#widget").count() == 0
