"""A headless Chromium for tests, and what every page is held to while a test looks at it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find_chromium() -> str | None:
    named = os.environ.get("CHROMIUM")
    return named or next((path for name in _NAMES if (path := shutil.which(name))), None)


def can_install_chromium() -> bool:
    """Whether scripts/browser could have brought one."""
    return shutil.which("apt-get") is not None and os.geteuid() == 0


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(_FLAGS))
        try:
            yield browser
        finally:
            browser.close()


class Watch:
    """What went wrong on the pages of a context: errors in the console, uncaught ones, requests to other hosts."""

    def __init__(self, context: BrowserContext, *, host: str) -> None:
        self._host = host
        self.faults: list[str] = []
        self.expected: Callable[[str], bool] = lambda _: False
        context.on("console", self._said)
        context.on("weberror", lambda error: self._note(f"uncaught: {error.error}"))
        context.on("request", self._requested)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self._note(f"{message.type}: {message.text} ({message.location.get('url', '')})")

    def _requested(self, request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme not in {"data", "blob"} and address.netloc != self._host:
            self._note(f"request to another host: {request.url}")

    def _note(self, fault: str) -> None:
        if not self.expected(fault):
            self.faults.append(fault)


def is_unreachable(fault: str) -> bool:
    """What a browser says by itself of a server that is away."""
    return "net::ERR_" in fault or "503 (Service Unavailable)" in fault


def until_live(page: Page) -> None:
    page.locator("#link-state[data-state=live]").wait_for()


def report(agent_id: str, *, vram: float, cores: int, **fields: Any) -> dict[str, Any]:
    """A heartbeat with so much free, of a machine twice as large."""
    return {
        "agent_id": agent_id,
        **fields,
        "resource_metrics": {
            "cpu_cores_physical": max(2, 2 * cores),
            "cpu_cores_available": cores,
            "cpu_percent": 25.0,
            "cpu_load_1min": 1.5,
            "cpu_load_5min": 1.0,
            "memory_percent": 40.0,
            "memory_available_gb": 32.0,
            "gpu_vram_total_gb": 2 * vram,
            "gpu_vram_available_gb": vram,
            "gpu_type": "nvidia" if vram else "none",
        },
    }
