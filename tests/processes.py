"""Real `headroom …` processes for tests: started, asked, ended by signals, and checked to leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil

from app.tether import die_with_parent
from tests.waiting import PATIENCE_S, wait_until

ROOT = Path(__file__).resolve().parent.parent
_MARK = "HEADROOM_TEST_MARK"


class Headroom:
    """One `headroom ARGUMENTS` with everything it starts; `url` is its API's once it is ready."""

    def __init__(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self._mark = uuid.uuid4().hex
        with tempfile.NamedTemporaryFile(prefix="headroom-test-", suffix=".log", delete=False) as output:
            self._output = Path(output.name)
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "app", *arguments],
                cwd=self._output.parent,
                env=_environment() | {_MARK: self._mark} | dict(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent(),  # noqa: PLW1509  the child only calls prctl
            )
        self.url = ""

    @property
    def output(self) -> str:
        """Everything that it and its parts have written."""
        return self._output.read_text(errors="replace")

    @property
    def client(self) -> httpx.Client:
        """A client of its API; a context manager."""
        return httpx.Client(base_url=self.url, timeout=PATIENCE_S, trust_env=False)

    def get(self, path: str, **parameters: str | float) -> httpx.Response:
        with self.client as client:
            return client.get(path, params=parameters)

    def post(self, path: str, body: Any) -> httpx.Response:
        with self.client as client:
            return client.post(path, json=body)

    def until_ready(self, *, timeout_s: float = PATIENCE_S) -> Self:
        """Returns once /readyz of the printed address says so."""
        wait_until(lambda: self._printed_url() or self.ended, timeout_s=timeout_s, what="an address")
        self.url = self._printed_url()
        wait_until(lambda: self.ended or self._ready(), timeout_s=timeout_s, what=f"/readyz of {self.output}")
        assert not self.ended, self.output
        return self

    def until_printed(self, text: str, *, timeout_s: float = PATIENCE_S) -> Self:
        wait_until(lambda: text in self.output or self.ended, timeout_s=timeout_s, what=f"“{text}”")
        assert text in self.output, self.output
        return self

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def end(self, number: signal.Signals = signal.SIGTERM, *, timeout_s: float = PATIENCE_S) -> int:
        """Sends the signal, waits for the process's end, and returns its exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout_s)

    def family(self) -> list[psutil.Process]:
        """All living processes that it started, directly or not, and itself."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                alive = process.status() != psutil.STATUS_ZOMBIE
                if alive and process.environ().get(_MARK) == self._mark:
                    found.append(process)
        return found

    def find_part(self, *arguments: str) -> psutil.Process | None:
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                if process.cmdline()[4 : 4 + len(arguments)] == list(arguments):
                    return process
        return None

    def part(self, *arguments: str) -> psutil.Process:
        """The process of one part, such as `part("worker", "ingest")`; waits while it is down."""
        process = wait_until(lambda: self.find_part(*arguments), what=f"the part {arguments}")
        assert process is not None
        return process

    def until_gone(self) -> None:
        """Fails unless every process of the family ends."""
        wait_until(lambda: not self.family(), what=f"the end of {self.family()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            sys.stderr.write(f"\n--- output of headroom {self.process.args!r}\n{self.output[-6000:]}\n---\n")
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(PATIENCE_S)
        self._output.unlink(missing_ok=True)

    def _printed_url(self) -> str:
        found = re.search(r"(?:^  API +|The API listens.*url=)(http://[\w.:\[\]]+)$", self.output, re.MULTILINE)
        return found[1] if found else ""

    def _ready(self) -> bool:
        try:
            return self.get("/readyz").is_success
        except httpx.TransportError:
            return False


def start_up(data_dir: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> Headroom:
    """`headroom up` on free ports with its data in `data_dir`."""
    fixed = ("--port", "0", "--embedded-port", "0", "--data-dir", str(data_dir))
    return Headroom("up", *fixed, *arguments, environment=environment)


def _environment() -> dict[str, str]:
    """The person's own, without settings of theirs; `app` and `workers` come from this checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADROOM_")}
    return kept | {"PYTHONPATH": str(ROOT)}
