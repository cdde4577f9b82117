"""Logs and metrics: one place that names them, so that a test can hold docs/metrics.md against it."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from collections import deque

import structlog
from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics, start_http_server

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)

LOOKUPS = Counter("headroom_lookups", "Lookups answered, by call and source.", ["call", "source"])
LOOKUP_SECONDS = Histogram(
    "headroom_lookup_seconds", "Time a lookup took inside the service.", ["call", "source"], buckets=_SECONDS
)
HEARTBEATS_ACCEPTED = Counter("headroom_heartbeats_accepted", "Heartbeats acknowledged with 202.")
HEARTBEATS_REJECTED = Counter("headroom_heartbeats_rejected", "Heartbeats refused as invalid.")
HEARTBEATS = Counter("headroom_heartbeats", "Heartbeats judged by the ingest, by outcome.", ["outcome"])
RECORDED = Counter("headroom_recorded_heartbeats", "Heartbeats judged by the recorder, by outcome.", ["outcome"])
TRANSITIONS = Counter("headroom_transitions", "Status changes written to the record.")
DEAD_LETTERS = Counter(
    "headroom_dead_letters",
    "Log entries set aside: not to be decoded, or of an agent whose state is damaged.",
    ["group"],
)
STREAM_LOST = Counter("headroom_lost_entries", "Log entries trimmed before a group had processed them.", ["group"])
VISIBILITY_SECONDS = Histogram(
    "headroom_visibility_seconds", "From a heartbeat's receipt to its application.", buckets=_SECONDS
)
CLOCK_SKEW_SECONDS = Histogram(
    "headroom_clock_skew_seconds",
    "How far the agents' clocks are from Redis's, either way.",
    buckets=(0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 86_400.0),
)
SWEPT = Counter("headroom_swept_agents", "Agents taken out because they fell silent.")
MASS_SILENCE = Gauge("headroom_mass_silence", "1 while the brake holds because most of the fleet fell silent.")
FEED_BEHIND = Gauge("headroom_feed_behind", "1 while the change feed cannot be read.")
FEED_CHANGES = Counter("headroom_feed_changes", "Changes read from the feed while anybody waited or listened.")
FEED_UNREADABLE = Counter(
    "headroom_unreadable_changes", "Entries of the change feed that could not be read; listeners start over."
)
WAITERS = Gauge("headroom_waiters", "Searches that wait for capacity.")
WAITERS_VRAM_BYTES = Gauge("headroom_waiters_vram_bytes", "GPU memory that the waiting searches ask for in all.")
WAITER_LOOKS = Counter("headroom_waiter_looks", "Looks into the index for searches that wait.")
LISTENERS = Gauge("headroom_listeners", "Listeners to server-sent events.")
LISTENERS_DROPPED = Counter("headroom_dropped_listeners", "Listeners dropped because they did not read.")
TASKS_ASSIGNED = Counter("headroom_assigned_tasks", "Tasks of plans assigned to an agent.")
TASKS_PENDING = Gauge("headroom_pending_tasks", "Tasks of plans that nothing fits, when last looked.")
TASKS_PENDING_VRAM_BYTES = Gauge("headroom_pending_tasks_vram_bytes", "GPU memory that those tasks need in all.")
CLOCK_JUMPS = Counter("headroom_clock_jumps", "Times that Redis's clock was set.")
REBUILDS = Counter("headroom_rebuilds", "Rebuilds of the index from the record.")
REBUILD_SECONDS = Gauge("headroom_rebuild_seconds", "How long the last rebuild took.")
LOOP_FAILURES = Counter("headroom_loop_failures", "Failed rounds of a worker loop.", ["loop"])
MALFORMED_AGENTS = Counter(
    "headroom_malformed_agents", "Agents skipped because their state cannot be read.", ["source"]
)


AGENTS = Gauge("headroom_agents", "Agents of the index, by status.", ["agent_type", "pool", "gpu_type", "status"])
VRAM_BYTES = Gauge(
    "headroom_vram_bytes",
    "GPU memory on the best GPU of each agent: free on placeable agents, total on those not offline.",
    ["agent_type", "pool", "gpu_type", "kind"],
)
CORES = Gauge(
    "headroom_cores",
    "CPU cores: free on placeable agents, physical on those not offline.",
    ["agent_type", "pool", "gpu_type", "kind"],
)
LOG_ENTRIES = Gauge("headroom_log_entries", "Entries that the log holds, processed or not.")
BACKLOG_ENTRIES = Gauge("headroom_backlog_entries", "Log entries that a group has yet to process.", ["group"])
BACKLOG_AGE_SECONDS = Gauge(
    "headroom_backlog_age_seconds", "How long the oldest entry has waited for a group.", ["group"]
)
GROUP_WORKERS = Gauge("headroom_group_workers", "Workers that have read for a group lately.", ["group"])
DEAD_LETTER_ENTRIES = Gauge("headroom_dead_letter_entries", "Entries in the dead-letter stream.")
UNUSUAL_AGENTS = Gauge("headroom_unusual_agents", "Agents that lately were flapping or cloned.", ["how"])
REAPER_UP = Gauge("headroom_reaper_up", "1 while some reaper holds the lease.")
INDEX_UP = Gauge("headroom_index_up", "1 while lookups are answered from the index, 0 while from the record.")
REDIS_MEMORY_BYTES = Gauge("headroom_redis_memory_bytes", "Memory that Redis uses for everything in it.")

# The client library would add the time at which each counter was made as a metric of its own.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library leaves it untyped


def serve_metrics(host: str, port: int) -> None:
    """Serves this process's metrics, for one that has no other address; raises OSError when the port is taken."""
    start_http_server(port, addr=host)


class _Handover(logging.Handler):
    """Leaves rendering and writing to a thread that looks every 50 ms: they take as long as a lookup does.

    Waking that thread for each line would cost the caller as much again.
    """

    _EVERY_S = 0.05

    def __init__(self, writer: logging.Handler) -> None:
        super().__init__()
        self._writer = writer
        self._lines: deque[logging.LogRecord] = deque()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._write, name="log-writer", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record)

    def flush(self) -> None:
        while self._lines:
            self._writer.handle(self._lines.popleft())

    def close(self) -> None:
        self._ending.set()
        self._thread.join(1.0)
        self.flush()
        super().close()

    def _write(self) -> None:
        while not self._ending.wait(self._EVERY_S):
            self.flush()


def configure_logging(level: str, log_format: str) -> None:
    """Sends structlog and the standard library's logging to stderr in one form. Called by entry points only."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty() and not os.environ.get("NO_COLOR"))
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    for before in root.handlers:
        if isinstance(before, _Handover):
            before.close()
    root.handlers = [_Handover(handler)]
    root.setLevel(level)
    for noisy in ("alembic", "asyncio", "httpx", "httpcore", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelName(level)))


def logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger that works unconfigured too (as plain standard logging would), for use as a library."""
    return structlog.stdlib.get_logger(name)
