"""Fixtures: a browser, the real stack, and pages that fail the test for whatever went wrong on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.browsing import Watch, can_install_chromium, chromium, find_chromium
from tests.processes import Headroom, start_up
from tests.waiting import PATIENCE_S

_MISSING = "No Chromium was found: the dashboard and the widgets were NOT tested in a browser."

# Where nobody could have installed one, these tests are left out, loudly; elsewhere each of them fails.
collect_ignore_glob = [] if find_chromium() or can_install_chromium() else ["test_*.py"]

_MEASURED = "measured"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for report in terminalreporter.getreports("passed"):
        for kind, said in report.user_properties:
            if kind == _MEASURED:
                terminalreporter.line(said)
    if not find_chromium():
        terminalreporter.section("browser tests", red=True, bold=True)
        terminalreporter.line(f"{_MISSING} Install it (Debian: apt install chromium), or name it in CHROMIUM.")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if not find_chromium():
        pytest.fail(f"{_MISSING} scripts/browser installs it.")
    expect.set_options(timeout=1000 * PATIENCE_S)
    with chromium() as running:
        yield running


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Headroom]:
    """The stack that most tests share; each uses agents and pools of its own."""
    with start_up(tmp_path_factory.mktemp("house"), "--no-agent") as running:
        yield running.until_ready()


Measured = Callable[[str, str], None]
Open = Callable[..., Page]


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """Takes what is reported at the end of the run, and not asserted: machines differ."""

    def report(what: str, figures: str) -> None:
        request.node.user_properties.append((_MEASURED, f"{what}: {figures}"))

    return report


@pytest.fixture
def watches() -> list[Watch]:
    """What went wrong on the pages of this test; a test that breaks things says what it expects."""
    return []


@pytest.fixture
def open_page(browser: Browser, house: Headroom, watches: list[Watch]) -> Iterator[Open]:
    """Opens pages: `open_page("/pools")`, or of another stack with `at=`; keywords are the context's."""
    contexts = []

    def opened(path: str, *, at: str = house.url, **context_options: Any) -> Page:
        options = {"viewport": {"width": 1280, "height": 800}, **context_options}
        context = browser.new_context(base_url=at, **options)
        contexts.append(context)
        watches.append(Watch(context, host=at.removeprefix("http://")))
        page = context.new_page()
        page.set_default_timeout(1000 * PATIENCE_S)
        page.goto(path)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [fault for watch in watches for fault in watch.faults] == []


@pytest.fixture
def own_house(tmp_path: Path) -> Iterator[Callable[..., Headroom]]:
    """Starts a stack for this test alone; arguments are those of `headroom up`."""
    running: list[Headroom] = []

    def started(*arguments: str) -> Headroom:
        stack = start_up(tmp_path / "house", "--no-agent", *arguments)
        running.append(stack)
        return stack.until_ready()

    yield started
    for stack in running:
        stack.__exit__(None, None, None)
