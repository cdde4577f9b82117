"""The dashboard in a real browser, against the real stack."""

from __future__ import annotations

import shlex
import time
import uuid
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import redis
from playwright.sync_api import Page, expect

from tests.browser.browsing import Watch, is_unreachable, report, until_live
from tests.processes import Headroom
from tests.servers import free_port
from tests.waiting import wait_until

Open = Callable[..., Page]
Measured = Callable[[str, str], None]

NOTE_WHEN_LISTED = """
(text) => {
  window.listedAt = null;
  const list = document.getElementById("list");
  new MutationObserver((_, observer) => {
    if (!list.textContent.includes(text)) return;
    window.listedAt = Date.now();
    observer.disconnect();
  }).observe(list, {childList: true, subtree: true, characterData: true});
}
"""


def new_agents(house: Headroom, pool: str, *sizes: tuple[float, int], **fields: Any) -> list[str]:
    """Agents of a pool of their own with so much free VRAM and so many free cores; visible when it returns."""
    ids = [str(uuid.uuid4()) for _ in sizes]
    send(
        house,
        *(report(one, vram=v, cores=c, pool_name=pool, **fields) for one, (v, c) in zip(ids, sizes, strict=True)),
    )
    agent_type = fields.get("agent_type", "desktop")
    wait_until(lambda: len(found(house, pool, agent_type)) >= len(sizes), what="the agents")
    return ids


def send(house: Headroom, *heartbeats: dict[str, Any]) -> None:
    for first in range(0, len(heartbeats), 1000):
        assert (
            house.post("/api/v1/heartbeats", {"heartbeats": heartbeats[first : first + 1000]}).status_code == 202
        )


def found(house: Headroom, pool: str, agent_type: str = "desktop") -> list[dict[str, Any]]:
    query = {"pool_name": pool, "agent_type": agent_type}
    rows: list[dict[str, Any]] = house.get("/api/v1/agents/available-capacity", **query).json()
    return rows


def drawn(page: Page) -> str:
    """The map's picture."""
    picture: str = page.evaluate("document.querySelector('#map canvas').toDataURL()")
    return picture


def test_sliders_filter_map_and_list_while_they_are_dragged(house: Headroom, open_page: Open) -> None:
    # Of a type of their own: the sliders go as far as the largest agent of the type does.
    sizes = (4.0, 2), (16.0, 8), (48.0, 32)
    small, middle, large = new_agents(house, "sliders", *sizes, agent_type="sliders")
    page = open_page("/?pool=sliders&type=sliders")
    until_live(page)
    rows = page.locator("#list tr")
    expect(rows).to_have_count(3)
    expect(page.locator("#fit-count")).to_have_text("3 agents fit")
    before = drawn(page)
    slider = page.locator("#vram-range")
    box = slider.bounding_box()
    assert box is not None
    middle_y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 8, middle_y)
    page.mouse.down()
    seen = set()
    for step in range(1, 41):
        page.mouse.move(box["x"] + 8 + (box["width"] - 16) * step / 40, middle_y)
        page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        seen.add(rows.count())
    # Still held: what fits followed the hand all the way, to the largest agent alone.
    assert seen == {3, 2, 1}
    assert drawn(page) != before
    expect(rows.locator("a")).to_have_attribute("href", f"/agents/{large}")
    page.mouse.up()
    page.locator("#vram").fill("10")
    expect(rows).to_have_count(2)
    page.locator("#cores-range").focus()
    while rows.count() > 1:
        page.keyboard.press("ArrowRight")
    assert int(page.locator("#cores").input_value()) > 8
    assert small != middle


def test_the_address_says_what_is_asked(house: Headroom, open_page: Open) -> None:
    new_agents(house, "address book", (4.0, 2), (16.0, 8))
    page = open_page("/?pool=address+book")
    until_live(page)
    page.locator("#vram").fill("12.5")
    page.locator("#cores").fill("3")
    page.wait_for_url("**/?vram=12.5&cores=3&pool=address+book")
    page.reload()
    expect(page.locator("#vram")).to_have_value("12.5")
    expect(page.locator("#list tr")).to_have_count(1)
    rows = page.request.get(page.locator("[data-line=JSON]").inner_text()).json()
    assert [row["gpu_vram_available_gb"] for row in rows] == [16.0]
    answer = run_line(page)
    assert len(answer) == 1
    assert b"vram_gb=16.0" in answer[0]


def run_line(page: Page) -> Any:
    """Runs the redis-cli line that the page shows, as redis-cli would."""
    words = shlex.split(page.locator("[data-line=redis-cli]").inner_text())
    assert words[0] == "redis-cli"
    with connection(words[1:3]) as client:
        return client.execute_command(*words[3:])


def connection(where: list[str]) -> redis.Redis:
    option, value = where
    return {
        "-s": lambda: redis.Redis(unix_socket_path=value),
        "-p": lambda: redis.Redis(port=int(value)),
        "-u": lambda: redis.Redis.from_url(value),
    }[option]()


def test_a_heartbeat_changes_the_page_without_a_question(
    house: Headroom, open_page: Open, measured: Measured
) -> None:
    (agent_id,) = new_agents(house, "prompt", (24.0, 8))
    page = open_page("/?pool=prompt")
    until_live(page)
    expect(page.locator("#list tr")).to_contain_text("24 / 48 GB")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    delays_ms = []
    for vram in (11.0, 12.0, 13.0, 14.0, 15.0):
        page.evaluate(NOTE_WHEN_LISTED, f"{vram:.0f} /")
        send(house, report(agent_id, vram=vram, cores=8, pool_name="prompt"))
        accepted_ms = 1000 * time.time()
        expect(page.locator("#list tr")).to_contain_text(f"{vram:.0f} /")
        delays_ms.append(page.evaluate("window.listedAt") - accepted_ms)
    assert asked == []
    measured("from a heartbeat's 202 to the page", f"{sorted(delays_ms)[2]:.0f} ms (median of 5)")
    expect(page.locator("#changes li").first).to_contain_text("15 GB")


def test_a_newcomer_appears_with_its_name(house: Headroom, open_page: Open) -> None:
    page = open_page("/?pool=newcomers")
    until_live(page)
    expect(page.locator("#list-empty")).to_be_visible()
    new_agents(house, "newcomers", (8.0, 4), hostname="just-unpacked")
    expect(page.locator("#list")).to_contain_text("just-unpacked")
    expect(page.locator("#pool option", has_text="newcomers")).to_have_count(1)


def test_a_silent_agent_turns(own_house: Callable[..., Headroom], open_page: Open) -> None:
    house = own_house("--heartbeat-interval-s", "1", "--offline-after-s", "3")
    (agent_id,) = new_agents(house, "quiet", (8.0, 4))
    page = open_page("/?pool=quiet&show=all", at=house.url)
    until_live(page)
    expect(page.locator("#list .dot")).to_have_attribute("class", "dot offline")
    expect(page.locator("#tile-offline")).to_have_text("1")
    expect(page.locator("#fit-count")).to_have_text("0 agents fit")
    send(house, report(agent_id, vram=8.0, cores=4, pool_name="quiet"))
    expect(page.locator("#fit-count")).to_have_text("1 agent fits")


def test_a_cordon_by_click_shows_in_redis(house: Headroom, open_page: Open) -> None:
    (agent_id,) = new_agents(house, "cordons", (8.0, 4), hostname="to-be-repaired")
    page = open_page(f"/agents/{agent_id}")
    until_live(page)
    expect(page.locator("#name")).to_have_text("to-be-repaired")
    page.get_by_label("Reason").fill("new fan")
    page.get_by_label("Your name").fill("ada")
    page.get_by_role("button", name="Cordon", exact=True).click()
    expect(page.locator("#cordon-said")).to_contain_text("Cordoned: no search finds it.")
    answer = run_line(page)
    fields = dict(zip(answer[::2], answer[1::2], strict=True))
    assert b"new fan" in fields[b"cordon"]
    assert found(house, "cordons") == []
    expect(page.locator("#state")).to_have_text("cordoned")
    expect(page.locator("#events")).to_contain_text("ada: new fan")
    page.get_by_role("button", name="Uncordon").click()
    expect(page.locator("#cordon-said")).to_contain_text("Uncordoned")
    wait_until(lambda: len(found(house, "cordons")) == 1, what="the agent in searches")


def test_who_waits_is_shown_with_what_for(house: Headroom, open_page: Open) -> None:
    page = open_page("/waiting")
    until_live(page)
    page.evaluate(
        "void fetch('/api/v1/agents/available-capacity?min_gpu_vram_gb=5000&min_cpu_cores=3&wait_s=20')"
        ".catch(() => undefined)"
    )
    expect(page.locator("#waiting tr")).to_contain_text("5,000 GB VRAM, 3 cores")
    task = {"name": "train <b>all</b>", "gpu_vram_gb": 6000.0, "cpu_cores": 4}
    assert house.post("/api/v1/plan", {"tasks": [task]}).status_code == 201
    expect(page.locator("#tasks tr")).to_contain_text("train <b>all</b>")
    expect(page.locator("#tasks tr")).to_contain_text("6,000 GB VRAM, 4 cores")


def test_health_says_who_is_missing(house: Headroom, open_page: Open) -> None:
    page = open_page("/health")
    until_live(page)
    expect(page.locator("#parts")).to_contain_text("all there")
    expect(page.locator("#groups tr")).to_have_count(2)


def test_when_the_stream_breaks_it_asks_for_snapshots(
    house: Headroom, open_page: Open, watches: list[Watch]
) -> None:
    (agent_id,) = new_agents(house, "broken stream", (8.0, 4))
    page = open_page("/?pool=broken+stream")
    watches[0].expected = is_unreachable
    until_live(page)
    page.route("**/api/v1/events*", lambda route: route.fulfill(status=503, body="{}"))
    house.part("api").terminate()
    page.locator("#link-state[data-state=polling]").wait_for()
    wait_until(lambda: is_ready(house), what="the API")
    send(house, report(agent_id, vram=21.0, cores=4, pool_name="broken stream"))
    expect(page.locator("#list")).to_contain_text("21 / 42 GB")
    page.unroute("**/api/v1/events*")
    until_live(page)


def is_ready(house: Headroom) -> bool:
    try:
        return house.get("/readyz").is_success
    except httpx.TransportError:
        return False


def test_it_says_that_the_api_is_away_and_recovers(
    own_house: Callable[..., Headroom], open_page: Open, watches: list[Watch]
) -> None:
    port = str(free_port())
    house = own_house("--port", port)
    new_agents(house, "away", (8.0, 4))
    page = open_page("/?pool=away", at=house.url)
    watches[0].expected = is_unreachable
    until_live(page)
    expect(page.locator("#list tr")).to_have_count(1)
    house.end()
    page.locator("#link-state[data-state=away]").wait_for()
    expect(page.locator("#away")).to_contain_text("The API does not answer.")
    expect(page.locator("#list tr")).to_have_count(1)
    own_house("--port", port)
    until_live(page)
    expect(page.locator("#away")).to_be_hidden()


@pytest.mark.parametrize("path", ["/", "/pools", "/health"])
def test_what_it_shows_first_needs_no_second_request(
    house: Headroom, open_page: Open, path: str, watches: list[Watch]
) -> None:
    new_agents(house, "first paint", (8.0, 4))
    page = open_page("/livez")
    watches[0].expected = is_unreachable
    page.route("**/static/**", lambda route: route.abort())
    page.goto(path)
    expect(page.locator("h1")).to_be_visible()
    if path != "/health":
        expect(page.locator("main")).to_contain_text("first paint")


def test_a_page_is_of_use_by_keyboard_alone(house: Headroom, open_page: Open) -> None:
    new_agents(house, "keyboard", (8.0, 4))
    page = open_page("/?pool=keyboard")
    until_live(page)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    names = []
    for _ in range(40):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    for name in ("vram", "vram-range", "cores", "cores-range", "type", "pool", "gpu", "show", "q"):
        assert name in names
