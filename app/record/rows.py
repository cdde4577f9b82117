"""Between rows and domain types. Rows come as the selections below name them, JSON as text."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
from sqlalchemy import Row, Text, cast

from app.models.agent import RegisteredAgent
from app.models.capacity import AgentStatus
from app.models.cordon import Cordon
from app.models.heartbeat import Gpu, ResourceMetrics
from app.models.identity import AgentId, StreamId
from app.models.order import Boot, Order
from app.record.tables import agent_history, agent_registry
from app.telemetry import MALFORMED_AGENTS, logger

_log = logger(__name__)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)

_encoder = msgspec.json.Encoder()
_metrics_decoder = msgspec.json.Decoder(ResourceMetrics | None)
_gpus_decoder = msgspec.json.Decoder(tuple[Gpu, ...] | None)
_cordon_decoder = msgspec.json.Decoder(Cordon | None)
_boots_decoder = msgspec.json.Decoder(tuple[Boot, ...] | None)

# As text: a document that cannot be read must not fail the whole result, however the engine decodes JSON.
METRICS: Final = cast(agent_registry.c.resource_metrics, Text).label("resource_metrics")
SAMPLE_METRICS: Final = cast(agent_history.c.resource_metrics, Text).label("resource_metrics")
GPUS: Final = cast(agent_registry.c.gpus, Text).label("gpus")
RETIRED_BOOTS: Final = cast(agent_registry.c.retired_boots, Text).label("retired_boots")

REGISTERED: Final = (
    agent_registry.c.agent_id,
    agent_registry.c.agent_type,
    agent_registry.c.pool_name,
    agent_registry.c.hostname,
    agent_registry.c.status,
    agent_registry.c.last_heartbeat_at,
    agent_registry.c.registered_at,
    agent_registry.c.boot_id,
    agent_registry.c.seq,
    GPUS,
    METRICS,
)
ORDERED: Final = (agent_registry.c.last_ms, agent_registry.c.last_n, RETIRED_BOOTS)

AnyRow = Row[*tuple[Any, ...]]

UNREADABLE: Final = (msgspec.MsgspecError, ValueError)
"""What the functions below raise for a row that nobody but this package should have written."""


def moment(ms: int) -> datetime:
    """Exact, unlike `fromtimestamp`, which rounds through a float. Raises OverflowError past the year 9999."""
    return _EPOCH + ms * _MS


def ms_of(at: datetime) -> int:
    return (at - _EPOCH) // _MS


def us_of(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(microseconds=1)


def report_malformed(agent_id: str) -> None:
    MALFORMED_AGENTS.labels(source="record").inc()
    _log.warning("Skipped malformed data of an agent", agent_id=agent_id)


def metrics_of(document: object) -> ResourceMetrics | None:
    """Raises one of UNREADABLE."""
    metrics = _metrics_decoder.decode(_text(document)) if document is not None else None
    return None if metrics is None or metrics.empty else metrics


def gpus_of(document: object) -> tuple[Gpu, ...]:
    """Raises one of UNREADABLE."""
    return (_gpus_decoder.decode(_text(document)) if document is not None else None) or ()


def order_of(row: AnyRow) -> Order:
    """Retired boots that cannot be read are forgotten."""
    try:
        retired = _boots_decoder.decode(_text(row.retired_boots)) if row.retired_boots is not None else None
    except UNREADABLE:
        report_malformed(row.agent_id)
        retired = None
    return Order(
        last_id=StreamId(row.last_ms, row.last_n),
        holder=None if row.boot_id is None else Boot(row.boot_id, row.seq),
        retired=retired or (),
    )


def cordon_of(document: object) -> Cordon | None:
    """Raises one of UNREADABLE."""
    return None if document is None else _cordon_decoder.decode(_text(document))


def registered_of(row: AnyRow) -> RegisteredAgent:
    """An agent whose document or status cannot be read has no metrics or GPUs, and is offline.

    A cordon that cannot be read is none.
    """
    try:
        metrics, gpus, status = metrics_of(row.resource_metrics), gpus_of(row.gpus), AgentStatus(row.status)
    except UNREADABLE:
        report_malformed(row.agent_id)
        metrics, gpus, status = None, (), AgentStatus.OFFLINE
    try:
        cordon = cordon_of(row.cordon)
    except UNREADABLE:
        report_malformed(row.agent_id)
        cordon = None
    return RegisteredAgent(
        agent_id=AgentId(row.agent_id),
        agent_type=row.agent_type,
        pool_name=row.pool_name,
        hostname=row.hostname,
        status=status,
        last_heartbeat_at=row.last_heartbeat_at,
        registered_at=row.registered_at,
        boot_id=row.boot_id,
        seq=row.seq,
        gpus=gpus,
        resource_metrics=metrics,
        cordon=cordon,
    )


def metrics_document(metrics: ResourceMetrics | None) -> str | None:
    return None if metrics is None else _encoder.encode(metrics).decode()


def cordon_document(cordon: Cordon | None) -> str | None:
    return None if cordon is None else _encoder.encode(cordon).decode()


def gpus_document(gpus: tuple[Gpu, ...]) -> str | None:
    return _encoder.encode(gpus).decode() if gpus else None


def boots_document(boots: tuple[Boot, ...]) -> str | None:
    return _encoder.encode(boots).decode() if boots else None


def _text(document: object) -> str:
    if not isinstance(document, str):
        raise msgspec.ValidationError("not a JSON document")
    return document
