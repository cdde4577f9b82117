"""More pools than one page of the list has."""

from __future__ import annotations

import uuid
from collections.abc import Callable

from playwright.sync_api import Page, expect

from tests.browser.browsing import report, until_live
from tests.processes import Headroom
from tests.servers import wait_until

POOLS = 450


def test_pools_are_listed_page_by_page_and_added_up_whole(
    own_house: Callable[..., Headroom], open_page: Callable[..., Page]
) -> None:
    house = own_house()
    beats = [report(str(uuid.uuid4()), vram=8.0, cores=4, pool_name=f"pool {n:03}") for n in range(POOLS)]
    assert house.post("/api/v1/heartbeats", {"heartbeats": beats}).status_code == 202
    wait_until(lambda: house.get("/api/v1/health").json()["reporting"] == POOLS, what="the fleet")

    unscripted = open_page("/", at=house.url, java_script_enabled=False)
    expect(unscripted.locator("#tile-placeable")).to_contain_text("450 of 450")
    expect(unscripted.locator("#tile-vram")).to_contain_text("3,600 GB of 7,200 GB")
    unscripted.goto("/pools")
    expect(unscripted.locator("#pools-shown")).to_have_text("50 of 450")

    page = open_page("/pools", at=house.url)
    until_live(page)
    more = page.locator("#pools-more button")
    for listed in (200, 400):
        expect(page.locator("#pools-shown")).to_have_text(f"{listed} of 450")
        expect(page.locator("#pools tr")).to_have_count(listed)
        expect(page.locator("#gpu-types tr").first).to_contain_text("7,200 GB")
        more.click()
    expect(page.locator("#pools tr")).to_have_count(POOLS)
    expect(page.locator("#pools-shown")).to_have_text("")
    expect(more).to_be_hidden()
