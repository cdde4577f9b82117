"""Headroom's own processes, as production starts them, on the benchmark's servers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil
import redis

from app.index.keys import GROUP_INDEX, GROUP_RECORD, Keys
from app.settings import Settings
from app.tether import die_with_parent
from tests.bench.sides import OFFLINE_AFTER_S
from tests.bench.web import FLOOR_PATH, HttpConnection, get
from tests.servers import free_port, wait_until

ROOT: Final = Path(__file__).parents[2]

_START_S: Final = 60.0
_STOP_S: Final = 15.0


class Program:
    """One process; it ends with the block it was started in, by its own pid."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        self._process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            # Ctrl-C is for the benchmark, which then ends its processes itself.
            start_new_session=True,
            preexec_fn=die_with_parent(),  # noqa: PLW1509  the child only calls prctl
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def running(self) -> bool:
        """Raises RuntimeError with the end of its output when it has ended."""
        if self._process.poll() is None:
            return True
        raise RuntimeError(f"{self._process.args!r} ended with {self._process.returncode}:\n{self.output()}")

    def cpu_s(self) -> float:
        """CPU time it has used so far."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def output(self) -> str:
        self._log.seek(0)
        return self._log.read()[-3000:].decode(errors="replace")

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_STOP_S)
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def settings_for(redis_url: str, database_url: str) -> Settings:
    return Settings(
        redis_url=redis_url,
        database_url=database_url,
        offline_after_s=OFFLINE_AFTER_S,
        # A peer may hold Redis for most of a second; that is its own time, no fault of the index.
        redis_timeout_s=SLOW_REDIS_S,
        stream_timeout_s=SLOW_REDIS_S,
    )


SLOW_REDIS_S: Final = 30.0


def environment_for(redis_url: str, database_url: str, **further: str) -> dict[str, str]:
    """The environment of a Headroom process; nothing of the person's own settings reaches it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADROOM_")}
    return {
        **kept,
        "HEADROOM_REDIS_URL": redis_url,
        "HEADROOM_DATABASE_URL": database_url,
        "HEADROOM_OFFLINE_AFTER_S": str(OFFLINE_AFTER_S),
        "HEADROOM_REDIS_TIMEOUT_S": str(SLOW_REDIS_S),
        "HEADROOM_STREAM_TIMEOUT_S": str(SLOW_REDIS_S),
        "HEADROOM_LOG_LEVEL": "WARNING",
        **further,
    }


def worker(name: str, environment: Mapping[str, str]) -> Program:
    """Starts one worker and returns once it reads."""
    program = Program(["-m", "app", "worker", name], environment)
    groups = {"ingest": GROUP_INDEX, "recorder": GROUP_RECORD}
    with contextlib.ExitStack() as undo:
        undo.callback(program.stop)
        with redis.Redis.from_url(environment["HEADROOM_REDIS_URL"], decode_responses=True) as client:
            wanted = f"headroom-{groups.get(name, name)}"

            def connected() -> bool:
                program.running()
                return any(each["name"] == wanted for each in client.client_list())

            wait_until(connected, timeout_s=_START_S, interval_s=0.05, what=f"the worker {name}")
        undo.pop_all()
    return program


@contextlib.contextmanager
def api(environment: Mapping[str, str]) -> Iterator[int]:
    """The API with the bare route beside it; yields its port."""
    port = free_port()
    with Program(["-m", "tests.bench.served"], {**environment, "HEADROOM_PORT": str(port)}) as program:

        def answers() -> bool:
            program.running()
            try:
                connection = HttpConnection(port)
            except OSError:
                return False
            connection.exchange(get(FLOOR_PATH))
            connection.close()
            return True

        wait_until(answers, timeout_s=_START_S, interval_s=0.05, what="the API")
        yield port


class Groups:
    """How far the two groups are behind the stream."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url, socket_timeout=SLOW_REDIS_S)
        self._stream = Keys().heartbeats

    def behind(self, group: str) -> int:
        """Entries that the group has not read or not acknowledged; at least 1 while there are any."""
        last_id = self._client.xinfo_stream(self._stream)["last-generated-id"]
        for found in self._client.xinfo_groups(self._stream):
            if found["name"] == group.encode():
                unread = int(found["lag"] or 0)
                # After entries were deleted the server may not know how many are left.
                if not unread and found["last-delivered-id"] != last_id:
                    unread = 1
                return unread + int(found["pending"])
        return 0

    def until_drained(self, *groups: str, timeout_s: float = 120.0) -> None:
        for group in groups:
            wait_until(
                lambda group=group: not self.behind(group),  # type: ignore[misc]  # bound as a default on purpose
                timeout_s=timeout_s,
                interval_s=0.01,
                what=f"the group {group} to catch up",
            )

    def trim(self) -> None:
        """Empties the stream, which the reaper's housekeeping does in production."""
        self._client.xtrim(self._stream, maxlen=0, approximate=False)

    def close(self) -> None:
        self._client.close()
