"""`headroom up`: everything on one machine, started, watched and ended together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import socket
import time
from collections.abc import Mapping
from typing import Final

import httpx
from rich.console import Console

from app.errors import StartupRefusedError, UnavailableError
from app.index.embedded import EmbeddedValkey
from app.index.lines import redis_cli
from app.listener import LISTEN_FD_VARIABLE, address_of, listen
from app.lockfile import LockFile, LockHeldError
from app.record.migrate import migrate
from app.settings import Settings
from app.telemetry import logger
from app.tether import PARENT_FD_VARIABLE
from workers.part import Command, Part, keep

_REPORTERS_END_WITHIN_S: Final = 1.5
_PARTS_END_WITHIN_S: Final = 4.0
_EMBEDDED_ENDS_WITHIN_S: Final = 2.0
_TAKEN_FOR_S: Final = 2.0
_RECORD_WITHIN_S: Final = 15.0
_SAY_AFTER_S: Final = 15.0

_log = logger(__name__)


class Up:
    """One run of `headroom up`."""

    def __init__(self, settings: Settings, *, simulate: int, agent: bool, console: Console) -> None:
        self._settings = settings
        self._simulate = simulate
        self._agent = agent
        self._console = console
        self._stop = asyncio.Event()
        self._lock = LockFile(settings.data_dir / "headroom.lock")
        self._listener: socket.socket | None = None
        self._embedded: EmbeddedValkey | None = None
        self._parts: list[Part] = []
        self._reporters: list[Part] = []
        # Our children hold the reading end; it reads as closed when this process is gone.
        self._followed, self._following = os.pipe()

    async def run(self) -> None:
        """Returns after SIGINT, SIGTERM or SIGHUP, when everything has ended.

        Raises:
            StartupRefusedError: the data directory or the port is in use, or a part cannot work here.
            UnavailableError: a server of the person's own does not answer.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop.set)
        running = asyncio.create_task(self._run_parts())
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            while not running.done():
                # A driver that is just connecting may swallow one cancellation.
                running.cancel()
                await asyncio.wait({running}, timeout=0.5)
            outcome = (await asyncio.gather(running, return_exceptions=True))[0]
            await self._end()
        if isinstance(outcome, Exception):
            raise outcome

    async def _run_parts(self) -> None:
        self._take_data_dir()
        self._listener = await self._listen()
        self._lock.annotate(address_of(self._listener))
        redis_url = self._settings.redis_url or await self._start_embedded()
        await self._migrate()
        environment = self._environment(redis_url)
        for name in ("ingest", "recorder", "reaper"):
            self._parts.append(self._command(name, ["worker", name], environment))
        self._parts.append(
            self._command(
                "api",
                ["api"],
                environment | {LISTEN_FD_VARIABLE: str(self._listener.fileno())},
                self._listener.fileno(),
            )
        )
        try:
            async with asyncio.TaskGroup() as group:
                for part in self._parts:
                    group.create_task(keep(part))
                if self._embedded is not None:
                    group.create_task(keep(self._embedded))
                await self._until_ready()
                self._reporters = self._commands_that_report(environment)
                for part in self._reporters:
                    group.create_task(_keep_if_it_can(part))
                self._tell(redis_url)
        except* StartupRefusedError as refusals:
            raise refusals.exceptions[0] from None

    def _take_data_dir(self) -> None:
        directory = self._settings.data_dir
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock.acquire()
        except LockHeldError as held:
            who = f" (process {held.holder.pid}, {held.holder.note})" if held.holder else ""
            raise StartupRefusedError(
                f"Headroom already runs with the data directory {directory}{who}: "
                "stop it, or give this one another with --data-dir"
            ) from held
        except OSError as error:
            raise StartupRefusedError(
                f"Cannot use the data directory {directory} ({error.strerror}): choose another with --data-dir"
            ) from error

    async def _listen(self) -> socket.socket:
        deadline = time.monotonic() + _TAKEN_FOR_S
        while True:
            try:
                return listen(self._settings)
            except StartupRefusedError:
                # The processes of a run that was killed a moment ago may still hold the port.
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.1)

    async def _start_embedded(self) -> str:
        self._embedded = EmbeddedValkey(self._settings)
        await self._embedded.start()
        return self._embedded.url

    async def _migrate(self) -> None:
        deadline = time.monotonic() + _RECORD_WITHIN_S
        while True:
            try:
                return await migrate(self._settings.record_url)
            except UnavailableError:
                if time.monotonic() > deadline:
                    raise
                _log.warning("The record does not answer yet; trying again")
                await asyncio.sleep(1.0)

    def _environment(self, redis_url: str) -> dict[str, str]:
        shutdown_after_s = min(self._settings.shutdown_after_s, _PARTS_END_WITHIN_S - 0.5)
        handed_down = self._settings.model_copy(
            update={"redis_url": redis_url, "shutdown_after_s": shutdown_after_s}
        )
        # Its workers would fight for one port.
        handed_down = handed_down.model_copy(update={"metrics_port": 0})
        return {**os.environ, **as_environment(handed_down), PARENT_FD_VARIABLE: str(self._followed)}

    def _command(self, name: str, arguments: list[str], environment: Mapping[str, str], *pass_fds: int) -> Command:
        return Command(name, arguments, environment, pass_fds=(self._followed, *pass_fds))

    def _commands_that_report(self, environment: Mapping[str, str]) -> list[Part]:
        url = self._url
        reporters: list[Part] = []
        if self._agent:
            state_dir = str(self._settings.data_dir / "agent")
            level = self._settings.log_level
            arguments = ["agent", "--server", url, "--state-dir", state_dir, "--log-level", level]
            reporters.append(self._command("agent", arguments, environment))
        if self._simulate:
            reporters.append(
                self._command("simulate", ["simulate", str(self._simulate), "--url", url], environment)
            )
        return reporters

    @property
    def _url(self) -> str:
        if self._listener is None:
            raise ValueError("nothing listens yet")
        return address_of(self._listener)

    async def _until_ready(self) -> None:
        said_at = time.monotonic() + _SAY_AFTER_S
        # The person's proxy settings are for other machines.
        async with httpx.AsyncClient(trust_env=False, timeout=2.0) as client:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get(f"{self._url}/readyz")).is_success:
                        return
                if time.monotonic() > said_at:
                    _log.warning("Still not ready; the lines above may say why")
                    said_at = time.monotonic() + _SAY_AFTER_S
                await asyncio.sleep(0.05)

    def _tell(self, redis_url: str) -> None:
        url = self._url
        lookup = f"{url}/api/v1/agents/available-capacity?min_gpu_vram_gb=8&min_cpu_cores=4"
        # The embedded server's port is shorter to type than its socket.
        shown_url = redis_url if self._embedded is None else f"redis://127.0.0.1:{self._embedded.port}"
        command = f"{redis_cli(shown_url)} ZRANGEBYSCORE headroom:desktop:vram:cores:8+ 12 +inf"
        lines = {
            "API": url,
            "Docs": f"{url}/docs",
            "Data": str(self._settings.data_dir),
            "Ask": f"curl {shlex.quote(lookup)}",
            "Redis": command,
        }
        self._console.print("[bold green]Headroom is ready.[/] Ctrl-C ends it.")
        for name, text in lines.items():
            # soft_wrap: a line cut in two could not be copied.
            self._console.print(f"  [bold]{name:<6}[/]", end="", soft_wrap=True)
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    async def _end(self) -> None:
        """First those that report and say goodbye, then those that take it, at last the server they write to."""
        started = time.monotonic()
        await asyncio.gather(*(part.stop(within_s=_REPORTERS_END_WITHIN_S) for part in self._reporters))
        await asyncio.gather(*(part.stop(within_s=_PARTS_END_WITHIN_S) for part in self._parts))
        if self._embedded is not None:
            await self._embedded.stop(within_s=_EMBEDDED_ENDS_WITHIN_S)
        if self._listener is not None:
            self._listener.close()
        os.close(self._following)
        os.close(self._followed)
        self._lock.release()
        _log.info("Headroom has ended", seconds=round(time.monotonic() - started, 1))


async def _keep_if_it_can(part: Part) -> None:
    """Without this machine's own agent, say because of a wrong agent.yml, the rest is still of use."""
    try:
        await keep(part)
    except StartupRefusedError as refusal:
        _log.error("Going on without it", reason=refusal.detail)


def as_environment(settings: Settings) -> dict[str, str]:
    """The settings as the variables that make another process have the same."""
    values = {name: getattr(settings, name) for name in type(settings).model_fields}
    return {f"HEADROOM_{name.upper()}": str(value) for name, value in values.items() if value is not None}


def up(settings: Settings, *, simulate: int, agent: bool) -> None:
    """Runs until a signal ends it; see `Up.run` for what it raises."""
    asyncio.run(Up(settings, simulate=simulate, agent=agent, console=Console()).run())
