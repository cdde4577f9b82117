"""What holds on every page and widget: hostile text, accessibility, narrow screens, weight."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from app.web.assets import load_assets
from tests.browser.browsing import Watch, report, until_live
from tests.processes import Headroom
from tests.servers import wait_until

Open = Callable[..., Page]

HOSTILE_NAME = "<img src=x onerror=\"window.owned='name'\">{{7*7}}"
HOSTILE_POOL = "</script><script>window.owned='pool'</script>{{7*7}}"
PAGES = ("/", "/pools", "/waiting", "/health", "/widgets/", "/agents/{agent}")
WIDGETS = (
    "/widgets/fit?min_vram=4&pool={pool}",
    "/widgets/pools",
    "/widgets/map",
    "/widgets/trend?pool={pool}",
    "/widgets/agent?agent_id={agent}",
)
AXE = Path(__file__).parent / "vendor" / "axe.min.js"


@pytest.fixture(scope="module")
def hostile(house: Headroom) -> str:
    """An agent whose names are attacks."""
    agent_id = str(uuid.uuid4())
    body = report(agent_id, vram=512.0, cores=64, hostname=HOSTILE_NAME, pool_name=HOSTILE_POOL)
    assert house.post(f"/api/v1/agents/{agent_id}/heartbeat", body).status_code == 202
    wait_until(lambda: house.get(f"/api/v1/agents/{agent_id}").is_success, what="the record of the agent")
    return agent_id


def address(path: str, agent_id: str) -> str:
    return path.format(
        agent=agent_id, pool="%3C%2Fscript%3E%3Cscript%3Ewindow.owned%3D%27pool%27%3C%2Fscript%3E%7B%7B7*7%7D%7D"
    )


def settled(page: Page) -> None:
    if page.locator("#link-state").count():
        until_live(page)
    page.wait_for_load_state("load")
    if page.locator("rapi-doc").count():
        page.get_by_text("/api/v1/agents/available-capacity").first.wait_for()
    page.wait_for_timeout(700)


@pytest.mark.parametrize("path", [*PAGES, *WIDGETS, "/docs"])
def test_hostile_names_stay_text_and_no_page_is_wider_than_a_phone(
    hostile: str, open_page: Open, path: str
) -> None:
    page = open_page(address(path, hostile), viewport={"width": 375, "height": 740})
    settled(page)
    for frame in page.frames:
        assert frame.evaluate("window.owned") is None
        assert frame.evaluate("document.querySelectorAll('img[src=x]').length") == 0
        assert "49" not in frame.evaluate("document.title")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_hostile_names_are_shown_as_they_are(hostile: str, open_page: Open) -> None:
    page = open_page("/")
    until_live(page)
    expect(page.locator("#list")).to_contain_text(HOSTILE_NAME)
    expect(page.locator("#pools")).to_contain_text(HOSTILE_POOL)
    page.goto(f"/agents/{hostile}")
    until_live(page)
    expect(page.locator("#name")).to_have_text(HOSTILE_NAME)
    expect(page.locator("#facts")).to_contain_text(HOSTILE_POOL)


@pytest.mark.parametrize("view", ["pools", "fit", "map", "trend", "agent"])
def test_pictures_with_hostile_names_are_well_formed(
    hostile: str, house: Headroom, open_page: Open, view: str
) -> None:
    page = open_page("/livez")
    source = f"/widgets/{view}.svg?agent_id={hostile}"
    size = page.evaluate(
        """async (source) => {
            const image = new Image();
            image.src = source;
            await image.decode();
            return image.naturalWidth;
        }""",
        source,
    )
    assert size > 50
    assert "<script" not in house.get(f"/widgets/{view}.svg", agent_id=hostile).text


@pytest.mark.parametrize("path", [*PAGES, *WIDGETS, "/docs"])
def test_nothing_serious_for_those_who_see_or_point_otherwise(hostile: str, open_page: Open, path: str) -> None:
    page = open_page(address(path, hostile), bypass_csp=True)
    settled(page)
    page.evaluate(AXE.read_text(encoding="utf-8"))
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found: dict[str, Any] = page.evaluate("axe.run(document, {resultTypes: ['violations'], iframes: false})")
        serious = [
            f"{scheme}: {one['id']}: {one['help']}: {[node['html'][:200] for node in one['nodes'][:3]]}"
            for one in found["violations"]
            if one["impact"] in {"serious", "critical"}
        ]
        assert serious == []


def test_the_theme_is_kept(open_page: Open) -> None:
    page = open_page("/", color_scheme="light")
    page.get_by_role("button", name="System").click()
    page.get_by_role("button", name="Light").click()
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.goto("/pools")
    expect(page.locator("#theme")).to_have_text("Dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark == "rgb(15, 20, 26)"


def test_the_description_of_the_api_needs_no_other_host(open_page: Open) -> None:
    page = open_page("/docs")
    until_live(page)
    expect(page.get_by_text("/api/v1/agents/available-capacity").first).to_be_visible()


def test_everything_together_weighs_less_than_150_kb(house: Headroom) -> None:
    """All pages and all their files, compressed; the viewer of /docs aside."""
    files = {path: len(asset.compressed) for path, asset in load_assets().by_path.items()}
    ours = sum(size for path, size in files.items() if not path.startswith("vendor/"))
    pages = 0
    with house.client as client:
        for path in ("/", "/pools", "/waiting", "/health", "/widgets/", "/widgets/fit", "/widgets/map"):
            with client.stream("GET", path) as response:
                assert response.headers["content-encoding"] == "gzip"
                pages += len(b"".join(response.iter_raw()))
    assert ours + pages < 150_000


def test_files_are_kept_for_ever_and_pages_are_not(house: Headroom, open_page: Open, watches: list[Watch]) -> None:
    page = open_page("/")
    assert watches
    source = page.locator("script[type=module]").get_attribute("src")
    assert source is not None
    response = page.request.get(source)
    assert "immutable" in response.headers["cache-control"]
    assert page.request.get(source.replace("/static/", "/static/x")).status == 404
    assert house.get("/").headers["cache-control"] == "no-store"
    assert json.loads(page.locator("#page-data").inner_text())["default_type"] == "desktop"


WIDEST = {
    "placeable": ("10,000", "of 10,000"),
    "vram": ("10,239 GB", "of 10,239 GB"),
    "cores": ("1,048,576", "of 1,048,576"),
}


@pytest.mark.parametrize("width", [320, 390, 620, 1000, 1280, 1440, 1920])
def test_figures_stay_inside_their_tiles_at_every_width(open_page: Open, width: int) -> None:
    page = open_page("/", viewport={"width": width, "height": 900})
    until_live(page)
    overflowing = page.evaluate(
        """(widest) => {
          for (const [name, [value, of]] of Object.entries(widest)) {
            const tile = document.getElementById(`tile-${name}`);
            tile.querySelector("span").textContent = value;
            tile.querySelector("small").textContent = of;
          }
          return [...document.querySelectorAll(".tile")].flatMap((tile) => {
            const edge = tile.getBoundingClientRect().right;
            const beyond = (one) => one.getBoundingClientRect().right > edge;
            return [...tile.querySelectorAll("span, small")].filter(beyond).map((one) => one.textContent);
          });
        }""",
        WIDEST,
    )
    assert overflowing == []


def test_words_of_a_table_are_not_cut_on_a_phone(house: Headroom, open_page: Open) -> None:
    task = {"name": "much", "gpu_vram_gb": 5000, "cpu_cores": 64}
    plan = house.post("/api/v1/plan", {"tasks": [task]}).json()
    try:
        page = open_page("/waiting", viewport={"width": 390, "height": 844})
        until_live(page)
        row = page.locator("#tasks tr", has_text="much")
        expect(row).to_have_count(1)
        cell = row.locator("td", has_text="desktop")
        assert cell.evaluate("(one) => one.getClientRects()[0].height") == row.evaluate(
            "(one) => one.getClientRects()[0].height"
        )
        lines = cell.evaluate(
            """(one) => {
              const range = document.createRange();
              range.selectNodeContents(one);
              return range.getClientRects().length;
            }"""
        )
        assert lines == 1
    finally:
        with house.client as client:
            task_id = plan["tasks"][0]["task_id"]
            assert client.patch(f"/api/v1/status/{task_id}", json={"status": "cancelled"}).is_success
