"""One worker process: opens what its loops need, runs them, closes it all. `headroom worker NAME` calls this."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Literal, get_args

from app.errors import StartupRefusedError
from app.index.opening import Index, consumer_name, open_index
from app.record import Record, open_record
from app.settings import Settings
from app.telemetry import logger, serve_metrics
from workers.clock_watch import ClockWatch
from workers.ingest import Ingest
from workers.reaper import Housekeeping, Reaper
from workers.rebuild import Rebuild
from workers.recorder import Reconcile, Recorder, Thinning
from workers.runner import Loop, Runner
from workers.sampler import Sampler
from workers.startup import StoreCheck

WorkerName = Literal["ingest", "recorder", "reaper"]
WORKERS: Final[tuple[WorkerName, ...]] = get_args(WorkerName)

_log = logger(__name__)


async def run_worker(name: WorkerName, settings: Settings) -> None:
    """Runs until SIGTERM or SIGINT. Any number of processes may run the same worker."""
    if settings.metrics_port:
        _serve_metrics(settings)
    index = open_index(settings, purpose=name)
    record = open_record(settings)
    try:
        check = StoreCheck(index, record)
        await check.run_once()
        runner = Runner([check, *_loops(name, settings, index, record)], drain_s=settings.shutdown_after_s / 2)
        await runner.run(signals=True, ready=lambda: _log.info("Worker runs", worker=name))
        _log.info("Worker ends", worker=name)
    finally:
        await record.close()
        await index.close()


def _serve_metrics(settings: Settings) -> None:
    address = f"{settings.metrics_host}:{settings.metrics_port}"
    try:
        serve_metrics(settings.metrics_host, settings.metrics_port)
    except OSError as error:
        raise StartupRefusedError(
            f"Metrics cannot be served on {address} ({error.strerror}): each worker wants a port of its own"
        ) from error


def _loops(name: WorkerName, settings: Settings, index: Index, record: Record) -> Sequence[Loop]:
    holder = consumer_name()
    rebuild = Rebuild(index.upkeep, record.reader, holder)
    watch = ClockWatch(index.upkeep)
    makers: dict[WorkerName, Callable[[], Sequence[Loop]]] = {
        # Whichever of the two is alive heals an index that was lost; a lease keeps them apart.
        "ingest": lambda: [Ingest(index.index_reader(), index.upkeep), rebuild, watch],
        "recorder": lambda: [
            Recorder(index.record_reader(), record.writer),
            Reconcile(index.states, record.writer),
            Thinning(record.writer),
            Sampler(index.insight, index.upkeep, record.totals, every_s=settings.history_every_s),
        ],
        "reaper": lambda: [
            Reaper(index.upkeep, holder, every_s=settings.sweep_interval_s, watch=watch),
            Housekeeping(index.upkeep, index.stream, holder),
            rebuild,
            watch,
        ],
    }
    return makers[name]()
