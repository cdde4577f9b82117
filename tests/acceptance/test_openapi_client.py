"""A client that knows nothing but the OpenAPI document, on the real stack.

It finds address, method and media type of a call by the operation's id, sends the document's own examples, and
takes no answer that the document does not describe. So the examples are calls that work, with such answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import jsonschema_rs
import pytest

from app.api.examples import examples
from app.api.openapi import EXAMPLE
from tests.processes import start_up
from tests.servers import wait_until

JSON = "application/json"
EXAMPLES = examples()


class DocumentClient:
    """`call("getAgent", path={...})`; keyword arguments take the place of the example's."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self._document = client.get("/openapi.json").raise_for_status().json()
        self._operations = {
            operation["operationId"]: (method, path, operation)
            for path, methods in self._document["paths"].items()
            for method, operation in methods.items()
        }
        self.unused = set(self._operations)

    def call(self, operation_id: str, **given: Any) -> Any:
        """The decoded answer of a success."""
        answer = self.answer(operation_id, **given)
        assert answer.is_success, answer.text
        return answer.json() if answer.content and answer.headers["content-type"] == JSON else answer.text

    def answer(self, operation_id: str, **given: Any) -> httpx.Response:
        method, path, operation = self._operations[operation_id]
        self.unused.discard(operation_id)
        named = {one["name"]: one["example"] for one in operation["parameters"] if "example" in one}
        in_path = [one["name"] for one in operation["parameters"] if one["in"] == "path"]
        wanted = {**named, **given.get("path", {}), **given.get("query", {})}
        for name in in_path:
            path = path.replace(f"{{{name}}}", quote(wanted.pop(name)))
        body = operation.get("requestBody", {}).get("content", {}).get(JSON)
        body = body and body["examples"][EXAMPLE]["value"]
        answer = self._client.request(method, path, params=wanted, json=given.get("body", body))
        self._check(operation, answer)
        return answer

    def _check(self, operation: dict[str, Any], answer: httpx.Response) -> None:
        described = operation["responses"][str(answer.status_code)]
        content = described.get("content")
        if content is None:
            assert answer.content == b""
            return
        media_type = answer.headers["content-type"].partition(";")[0]
        schema = {**content[media_type]["schema"], "components": self._document["components"]}
        value: Any = answer.json() if "json" in media_type else answer.text
        jsonschema_rs.Draft202012Validator(schema).validate(value)
        if answer.is_error and media_type != JSON:
            assert value["code"] in content[media_type]["examples"]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DocumentClient]:
    data_dir = tmp_path_factory.mktemp("openapi") / "data"
    with start_up(data_dir, "--no-agent") as headroom, headroom.until_ready().client as client:
        yield DocumentClient(client)


def alike(shown: Any, real: Any) -> None:
    """The same fields with the same kinds of values; lists by their first items, and as long as they like."""
    if isinstance(shown, dict):
        assert shown.keys() == real.keys()
        for name, value in shown.items():
            alike(value, real[name])
    elif isinstance(shown, list) and shown and real:
        alike(shown[0], real[0])
    elif shown is not None and real is not None:
        assert type(shown) is type(real)


def test_the_examples_are_a_story_that_happens(api: DocumentClient) -> None:
    plan: dict[str, Any] = {}
    told = dict.fromkeys(EXAMPLES)
    # The stream of events does not end by itself, and its answers are tested elsewhere.
    del told["listen"]
    api.unused.discard("listen")
    for operation_id in told:
        given: dict[str, Any] = {}
        if operation_id == "findAvailableCapacity":
            wait_until(lambda: len(api.call("listAgents", query={"limit": 9})) == 2, what="both heartbeats")
        if operation_id == "getAgent":
            wait_until(lambda: api.call("getAgent")["cordon"] is not None, what="the cordon in the record")
        if operation_id == "postPlan":
            api.call("changeAgents", body={"cordon": None})
        if operation_id == "getPlan":
            given = {"path": {"plan_id": plan["plan_id"]}}
        if operation_id in {"getTask", "endTask"}:
            given = {"path": {"task_id": plan["tasks"][0]["task_id"]}}
        answer = api.call(operation_id, **given)
        if operation_id == "postPlan":
            plan = answer
        shown = EXAMPLES[operation_id].answer
        if shown is not None and not isinstance(shown, str):
            alike(shown, answer)
    assert api.unused == set()


@pytest.mark.parametrize(
    ("operation_id", "given", "code"),
    [
        ("getAgentCapacity", {"path": {"agent_id": "nobody"}}, "invalid_agent_id"),
        ("getAgent", {"path": {"agent_id": "00000000-0000-4000-8000-000000000000"}}, "agent_not_found"),
        ("getPlan", {"path": {"plan_id": "00000000-0000-4000-8000-000000000000"}}, "plan_not_found"),
        ("getTask", {"path": {"task_id": "00000000-0000-4000-8000-000000000000"}}, "task_not_found"),
        ("findAvailableCapacity", {"query": {"cursor": "made-up"}}, "invalid_cursor"),
        ("findAvailableCapacity", {"query": {"min_gpu_vram_gb": -1}}, "invalid_query"),
        ("postHeartbeat", {"body": {"resource_metrics": {"cpu_cores_available": -1}}}, "invalid_body"),
        ("postPlan", {"body": {"tasks": []}}, "invalid_body"),
    ],
)
def test_errors_come_as_the_operation_names_them(
    api: DocumentClient, operation_id: str, given: dict[str, Any], code: str
) -> None:
    assert api.answer(operation_id, **given).json()["code"] == code
