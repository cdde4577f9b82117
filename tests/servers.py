"""Real servers for tests: Valkey from its wheel, Postgres from the system or from its wheel.

They listen on loopback, keep their files in a temporary directory, and end with the test run even when it is
killed. Fault tests stop, kill, pause and restart them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import redis

from app.index.embedded import valkey_binary
from app.tether import die_with_parent
from tests.compiling import compile_library
from tests.postgres_install import Account, directory_for, system_binaries, wheel_binaries
from tests.server import Server, ServerFailedError
from tests.waiting import PATIENCE_S, wait_until, wait_until_async

__all__ = [
    "PostgresServer",
    "Server",
    "ServerFailedError",
    "ValkeyServer",
    "free_port",
    "start_postgres",
    "start_valkey",
    "wait_until",
    "wait_until_async",
]

FULL_DISK: Final = Path(__file__).with_name("full_disk.c")
_PORTS: Final = range(12_000, 32_000)
_MOST_WORKERS: Final = 16
_given: set[int] = set()


def free_port() -> int:
    """A loopback port that nobody listens on, and that this process is given only once.

    It lies below those that a system hands out by itself (from 32768 on Linux, 49152 elsewhere): another process's
    connection to somewhere cannot take it before its server listens, nor while its server is down.
    """
    left = [port for port in _own_ports() if port not in _given]
    while left:
        port = left.pop(secrets.randbelow(len(left)))
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port
    raise ServerFailedError("every port for tests was given out once, or somebody listens on it")


def _own_ports() -> range:
    """Processes of one test run draw from ports of their own: what one gave up for a moment no other takes."""
    digits = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    return _PORTS[int(digits) % _MOST_WORKERS :: _MOST_WORKERS] if digits.isdigit() else _PORTS


class ValkeyServer(Server):
    """A real Valkey. Without `appendonly` a restart finds nothing, as after the loss of its disk.

    `config` are the lines of valkey.conf that the next start will have.
    """

    def __init__(
        self, directory: Path, *, port: int, unix_socket: bool, appendonly: bool, config: Sequence[str]
    ) -> None:
        super().__init__(directory)
        self.port = port
        self.socket_path = directory / "valkey.sock"
        self._unix_socket = unix_socket
        self.config = [
            f"port {port}",
            "bind 127.0.0.1",
            f"unixsocket {self.socket_path}",
            f"dir {directory}",
            'save ""',
            f"appendonly {'yes' if appendonly else 'no'}",
            "maxmemory-policy noeviction",
            *config,
        ]

    @property
    def url(self) -> str:
        return f"unix://{self.socket_path}" if self._unix_socket else f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        """A plain client for the test's own questions; close it (it is a context manager)."""
        return redis.Redis.from_url(self.url, decode_responses=True, socket_timeout=PATIENCE_S)

    def flush(self) -> None:
        with self.client() as client:
            client.flushall()
            client.script_flush()

    def _launch(self) -> subprocess.Popen[bytes]:
        config = self.directory / "valkey.conf"
        config.write_text("\n".join(self.config) + "\n")
        tie = die_with_parent()

        def prepare() -> None:
            tie()
            # As Postgres does itself: a file that may not grow is an error, not the server's end.
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

        with self._log.open("ab") as log:
            return subprocess.Popen(
                [valkey_binary(), config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=prepare,  # noqa: PLW1509  the child only makes two system calls
            )

    def _ready(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=1, retry=None) as client:
                info = client.info()
        except (redis.ConnectionError, redis.TimeoutError):
            return False
        # Another server may have won the port between the choice and the bind.
        return bool(info["process_id"] == self.pid and not info["loading"])

    def _stop_signal(self) -> signal.Signals:
        return signal.SIGTERM


class PostgresServer(Server):
    """A real Postgres without fsync: it survives `kill -9`, not a power cut."""

    def __init__(
        self,
        directory: Path,
        *,
        binaries: Path,
        account: Account,
        port: int,
        config: Mapping[str, str],
        fillable: bool,
    ) -> None:
        super().__init__(directory)
        self.port = port
        self._binaries = binaries
        self._account = account
        self._data = directory / "data"
        self._config = {
            "port": str(port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(directory),
            "fsync": "off",
            "full_page_writes": "off",
            "autovacuum_naptime": "1h",
            "max_connections": "60",
            "shared_buffers": "32MB",
            **config,
        }
        self._databases = 0
        self._full = directory / "full"
        self._library = directory / "full_disk.so"
        if fillable:
            compile_library(FULL_DISK, self._library)
        self._run([binaries / "initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "-E", "UTF8",
                   "--locale=C", "--no-sync"])  # fmt: skip

    @property
    def url(self) -> str:
        return self.database_url("postgres")

    def database_url(self, database: str) -> str:
        return f"postgresql+asyncpg://postgres@127.0.0.1:{self.port}/{database}"

    def fill_disk(self) -> None:
        """No table can grow any more; only for a server that was started with `fillable`."""
        self._full.touch()

    def empty_disk(self) -> None:
        self._full.unlink()

    def stop_immediately(self) -> None:
        """As `pg_ctl stop -m immediate`: the next start has to recover."""
        self._end(signal.SIGQUIT, timeout_s=PATIENCE_S)

    def sql(self, *statements: str, database: str = "postgres") -> str:
        """Runs the statements one by one with psql and returns what they print, unaligned."""
        commands = [part for statement in statements for part in ("-c", statement)]
        return self._run([self._binaries / "psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres",
                          "-d", database, "-v", "ON_ERROR_STOP=1", "-qAtX", *commands])  # fmt: skip

    def create_database(self, *, template: str = "template1") -> str:
        """Makes a fresh database and returns its name."""
        self._databases += 1
        name = f"test_{self._databases}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop_database(self, name: str) -> None:
        """Drops it even while somebody is connected."""
        self.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def _launch(self) -> subprocess.Popen[bytes]:
        settings = [part for name, value in self._config.items() for part in ("-c", f"{name}={value}")]
        fillable = {"LD_PRELOAD": str(self._library), "FULL_DISK": str(self._full)}
        preloaded = fillable if self._library.exists() else {}
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [self._binaries / "postgres", "-D", self._data, *settings],
                cwd=self.directory,
                env={**_postgres_environment(self.directory), **preloaded},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGQUIT),  # noqa: PLW1509  the child only calls prctl
                user=self._account.user,
                group=self._account.group,
                extra_groups=self._account.extra_groups,
            )

    def _ready(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            lines = (self._data / "postmaster.pid").read_text().splitlines()
            return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready"
        return False

    def _stop_signal(self) -> signal.Signals:
        return signal.SIGINT  # "fast": clients are cut off, nothing committed is lost

    def _run(self, command: Sequence[str | Path]) -> str:
        done = subprocess.run(
            command,
            cwd=self.directory,
            env=_postgres_environment(self.directory),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
            user=self._account.user,
            group=self._account.group,
            extra_groups=self._account.extra_groups,
        )
        if done.returncode:
            raise ServerFailedError(f"{Path(command[0]).name} failed: {done.stderr}")
        return done.stdout.strip()


def start_valkey(
    *, port: int | None = None, unix_socket: bool = False, appendonly: bool = False, config: Sequence[str] = ()
) -> ValkeyServer:
    """Starts a Valkey of the test's own.

    Args:
        port: None takes a free one.
        unix_socket: whether `url` names the socket; it listens on both in any case.
        appendonly: whether it keeps its data through restarts.
        config: further lines of valkey.conf; a later line wins.
    """
    server = ValkeyServer(
        Path(tempfile.mkdtemp(prefix="hr-valkey-")),
        port=port or free_port(),
        unix_socket=unix_socket,
        appendonly=appendonly,
        config=config,
    )
    server.start()
    return server


def start_postgres(
    *,
    port: int | None = None,
    config: Mapping[str, str] | None = None,
    from_wheel: bool = False,
    fillable: bool = False,
) -> PostgresServer:
    """Starts a Postgres of the test's own, as another user where the tests run as root.

    Args:
        port: None takes a free one.
        config: further settings, as `postgres -c name=value`.
        from_wheel: takes the wheel's binaries even where the system has some.
        fillable: whether its disk can be filled (Linux).
    """
    account = Account.choose()
    directory = directory_for(account)
    system = None if from_wheel else system_binaries()
    server = PostgresServer(
        directory,
        binaries=system or wheel_binaries(account, directory),
        account=account,
        port=port or free_port(),
        config=config or {},
        fillable=fillable,
    )
    server.start()
    return server


def _postgres_environment(directory: Path) -> dict[str, str]:
    """No PG* variable of the person's own shell may reach the test's server."""
    return {"HOME": str(directory), "PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
