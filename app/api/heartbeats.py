"""Heartbeats in: one, or a batch whose items are judged one by one. 202 means that the log has them."""

from __future__ import annotations

from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from app.api.agents import path_agent_id
from app.api.answers import answer
from app.api.body import read_document
from app.api.documents import (
    AcceptedItemDocument,
    HeartbeatAcceptedDocument,
    HeartbeatsAcceptedDocument,
    RejectedItemDocument,
)
from app.api.problems import BODY, FieldError, InvalidBodyError
from app.api.query import read_query
from app.api.schemas import BatchedHeartbeatIn, HeartbeatIn, HeartbeatsIn, read_as
from app.api.wiring import wiring_of
from app.models.heartbeat import Heartbeat
from app.models.identity import AgentId
from app.telemetry import HEARTBEATS_ACCEPTED, HEARTBEATS_REJECTED


async def post_heartbeat(request: Request) -> Response:
    wiring = wiring_of(request)
    agent_id = path_agent_id(request)
    read_query(request, ())
    document = await read_document(request, max_bytes=wiring.settings.max_body_bytes)
    with HEARTBEATS_REJECTED.count_exceptions(InvalidBodyError):
        heartbeat = read_heartbeat(document, agent_id)
    receipt = await wiring.intake.accept([heartbeat])
    HEARTBEATS_ACCEPTED.inc()
    (stream_id,) = receipt.stream_ids
    accepted = HeartbeatAcceptedDocument(str(stream_id), receipt.next_heartbeat_s, cloned=bool(receipt.cloned))
    return answer(accepted, status=202)


async def post_heartbeats(request: Request) -> Response:
    wiring = wiring_of(request)
    read_query(request, ())
    document = await read_document(request, max_bytes=wiring.settings.max_body_bytes)
    valid, rejected = read_batch(document)
    receipt = await wiring.intake.accept([heartbeat for _, heartbeat in valid])
    HEARTBEATS_ACCEPTED.inc(len(valid))
    accepted = [
        AcceptedItemDocument(index, str(stream_id))
        for (index, _), stream_id in zip(valid, receipt.stream_ids, strict=True)
    ]
    cloned: list[str] = sorted(receipt.cloned)
    document = HeartbeatsAcceptedDocument(accepted, rejected, receipt.next_heartbeat_s, cloned=cloned)
    return answer(document, status=202)


def read_heartbeat(document: Any, agent_id: AgentId) -> Heartbeat:
    """Raises InvalidBodyError."""
    report = read_as(HeartbeatIn, document)
    if report.agent_id is not None and report.agent_id != agent_id:
        raise InvalidBodyError([FieldError("agent_id", "mismatch", "Must be the id in the path")])
    return report.to_domain(agent_id)


class Batch(NamedTuple):
    """The items of a batch, each with its place in it."""

    valid: list[tuple[int, Heartbeat]]
    rejected: list[RejectedItemDocument]


def read_batch(document: Any) -> Batch:
    """Raises InvalidBodyError when no item is valid."""
    batch = Batch([], [])
    for index, item in enumerate(read_as(HeartbeatsIn, document).heartbeats):
        try:
            report = read_as(BatchedHeartbeatIn, item)
            batch.valid.append((index, report.to_domain(report.agent_id)))
        except InvalidBodyError as fault:
            batch.rejected.append(RejectedItemDocument(index, fault.code, list(fault.errors)))
    HEARTBEATS_REJECTED.inc(len(batch.rejected))
    if not batch.valid:
        raise InvalidBodyError(
            [
                FieldError(_item_path(item.index, error.field), error.code, error.message)
                for item in batch.rejected
                for error in item.errors
            ],
            "None of the heartbeats can be accepted",
        )
    return batch


def _item_path(index: int, field: str) -> str:
    return f"heartbeats[{index}]" if field == BODY else f"heartbeats[{index}].{field}"
