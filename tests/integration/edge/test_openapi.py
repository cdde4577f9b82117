"""The OpenAPI description against the running API: whatever it describes is answered as it says."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from app.main import create_app
from app.settings import Settings
from tests.waiting import PATIENCE_S

load_all_checks()


@schemathesis.serializer("application/msgpack")
def _as_msgpack(_context: schemathesis.SerializationContext, value: Any) -> bytes:
    return msgpack.packb(value, default=str)


def _operations() -> dict[str, Any]:
    schema = schemathesis.openapi.from_dict(create_app(Settings()).openapi())
    found = [operation.ok() for operation in schema.get_all_operations() if isinstance(operation, Ok)]
    assert len(found) == len(list(schema.get_all_operations()))
    return {operation.label: operation for operation in found}


OPERATIONS = _operations()
# These answers do not end by themselves.
ENDLESS = {"GET /api/v1/events"}
EXCLUDED: dict[str, list[Any]] = {
    # So is that an expiry lies in the future, and that a filter names somebody.
    "POST /api/v1/plan": [positive_data_acceptance],
    "PATCH /api/v1/agents": [positive_data_acceptance],
    "PATCH /api/v1/agents/{agent_id}": [positive_data_acceptance],
    # Rules between fields (free within total, years of sent_at) are beyond JSON Schema.
    "POST /api/v1/agents/{agent_id}/heartbeat": [positive_data_acceptance],
    # A batch is taken if only one of its items is sound.
    "POST /api/v1/heartbeats": [positive_data_acceptance, negative_data_rejection],
}


@pytest.mark.parametrize(
    ("label", "mode"),
    [
        (label, mode)
        for label, operation in OPERATIONS.items()
        if label not in ENDLESS
        for mode in GenerationMode
        if mode is GenerationMode.POSITIVE or operation.path_parameters or operation.query or operation.body
    ],
)
def test_an_operation_answers_as_described(port: int, label: str, mode: GenerationMode) -> None:
    @settings(
        max_examples=40, derandomize=True, database=None, deadline=None, suppress_health_check=tuple(HealthCheck)
    )
    @given(case=OPERATIONS[label].as_strategy(generation_mode=mode))
    def answers(case: schemathesis.Case[Any]) -> None:
        wait_s = (case.query or {}).get("wait_s")
        if isinstance(wait_s, int | float) and 0 < wait_s <= 300:
            case.query["wait_s"] = 0.01
        base_url = f"http://127.0.0.1:{port}"
        case.call_and_validate(base_url=base_url, timeout=PATIENCE_S, excluded_checks=EXCLUDED.get(label))

    answers()
