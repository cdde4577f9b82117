"""Every agent in pages, from the index and from the record, and its totals over time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.errors import IndexUnavailableError
from app.index.clock import ManualClock
from app.models.capacity import AgentStatus
from app.models.cordon import Cordon
from app.models.fleet import FleetPage
from app.models.insight import TrendQuery
from app.record import open_record
from app.settings import Settings
from tests.indexing import agent_id, heartbeat, index_settings, opened_index
from tests.logs import START_MS, moment
from tests.serving import http_client
from tests.stack import Stack
from workers.clock_watch import ClockWatch
from workers.reaper import Reaper
from workers.sampler import Sampler


@pytest.fixture
async def stack(redis_url: str, sqlite_record_url: str) -> AsyncIterator[Stack]:
    settings: Settings = index_settings(redis_url, database_url=sqlite_record_url)
    clock = ManualClock(START_MS)
    record = open_record(settings)
    async with opened_index(settings, clock=clock) as index:
        yield Stack(index, record, settings, clock)
    await record.close()


async def pages(stack: Stack, *, limit: int) -> tuple[list[dict[str, Any]], int, str]:
    """All agents by the names of their fields, how many pages they came in, and their source."""
    agents, count, cursor, source = [], 0, None, ""
    while count == 0 or cursor is not None:
        target = f"/api/v1/fleet?limit={limit}" + ("" if cursor is None else f"&cursor={cursor}")
        body = (await stack.get(target)).json()
        agents += [dict(zip(body["fields"], row, strict=True)) for row in body["agents"]]
        cursor, source, count = body["cursor"], body["source"], count + 1
    return agents, count, source


async def test_every_agent_comes_once_with_its_state(stack: Stack) -> None:
    await stack.report(*(heartbeat(n, vram=float(n), hostname=f"host-{n}") for n in range(1, 901)))
    await stack.report(heartbeat(901, status=AgentStatus.BUSY), heartbeat(902, status=AgentStatus.OFFLINE))
    await stack.index.cordons.cordon(agent_id(1), Cordon(reason="fan", actor="ada", since=moment(0)))
    agents, count, source = await pages(stack, limit=250)
    assert (len(agents), source) == (902, "index")
    assert count >= 3
    by_id = {agent["agent_id"]: agent for agent in agents}
    assert len(by_id) == 902
    two = by_id[agent_id(2)]
    assert (two["hostname"], two["gpu_vram_available_gb"], two["placeable"]) == ("host-2", 2.0, True)
    assert (by_id[agent_id(1)]["cordoned"], by_id[agent_id(1)]["placeable"]) == (True, False)
    assert (by_id[agent_id(901)]["status"], by_id[agent_id(901)]["placeable"]) == ("busy", False)
    assert by_id[agent_id(902)]["status"] == "offline"


async def test_a_silent_agent_reads_offline(stack: Stack) -> None:
    await stack.report(heartbeat(1), heartbeat(2))
    stack.clock.advance(80)
    await stack.report(heartbeat(2, vram=9.0))
    stack.clock.advance(20)
    await Reaper(stack.index.upkeep, "test", every_s=1, watch=ClockWatch(stack.index.upkeep)).sweep()
    agents, _, _ = await pages(stack, limit=100)
    assert {agent["agent_id"]: agent["status"] for agent in agents} == {
        agent_id(1): "offline",
        agent_id(2): "online",
    }


async def test_changes_after_the_version_of_a_page_are_those_it_does_not_show(stack: Stack) -> None:
    await stack.report(heartbeat(1, vram=8.0))
    page = await stack.index.fleet.page(limit=100)
    await stack.report(heartbeat(1, vram=4.0))
    (change,) = await stack.index.feed().read(page.version, block_s=0.01)
    assert (page.agents[0].gpu_vram_available_gb, change.gpu_vram_available_gb) == (8.0, 4.0)


async def test_without_the_index_it_comes_from_the_record(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    await stack.report(*(heartbeat(n, vram=float(n)) for n in range(1, 31)))

    async def away(**_wanted: object) -> FleetPage:
        raise IndexUnavailableError

    monkeypatch.setattr(stack.index.fleet, "page", away)
    agents, count, source = await pages(stack, limit=10)
    assert [agent["agent_id"] for agent in agents] == [agent_id(n) for n in range(1, 31)]
    assert (count, source) == (3, "record")


@pytest.mark.parametrize(
    "cursor", ["", "seen", "seen.-1", "seen.x", "silent.99999999999999999999", "record.1", "x.0"]
)
async def test_a_forged_cursor_is_refused(stack: Stack, cursor: str) -> None:
    async with http_client(stack.app_over(stack.index.capacity)) as client:
        response = await client.get("/api/v1/fleet", params={"cursor": cursor})
    assert (response.status_code, response.json()["code"]) == (400, "invalid_cursor")


async def test_the_sampler_keeps_what_there_is(stack: Stack) -> None:
    sampler = Sampler(stack.index.insight, stack.index.upkeep, stack.record.totals, every_s=300)
    await sampler.sample()
    await stack.report(heartbeat(1, vram=8.0), heartbeat(2, vram=4.0, pool_name="b"))
    await sampler.sample()
    (series,) = await stack.record.totals.trend(TrendQuery(), until_ms=START_MS + 1000)
    assert [(point.placeable, point.gpu_vram_available_gb) for point in series.points] == [(2, 12.0)]
