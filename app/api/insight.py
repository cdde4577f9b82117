"""`GET /api/v1/capacity/…`: why nothing fits, how much fits, what there is. From the index alone."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from app.api.answers import NO_STORE, answer, next_link
from app.api.capacity import FIND_PARAMETERS
from app.api.fields import MAX_POOL_NAME
from app.api.query import choice, read_query, text, whole
from app.api.wiring import wiring_of
from app.models.capacity import CapacityQuery
from app.models.identity import AGENT_TYPE_PATTERN
from app.models.insight import TotalsBy

DEFAULT_POOLS: Final = 100
MAX_POOLS: Final = 1_000

_PAGING: Final = {"limit", "cursor", "wait_s"}
_SIZE: Final = {"min_gpu_vram_gb", "min_cpu_cores", "agent_type", "pool_name"}

EXPLAIN_PARAMETERS: Final = tuple(one for one in FIND_PARAMETERS if one.name not in _PAGING)
FIT_PARAMETERS: Final = tuple(one for one in FIND_PARAMETERS if one.name in _SIZE)
SUMMARY_PARAMETERS: Final = (
    choice(
        "by",
        "`gpu_type`: one row per type and GPU type, over all pools unless one is named. Otherwise per pool too.",
        TotalsBy,
    ),
    text("agent_type", "Only this kind of agent.", longest=32, pattern=AGENT_TYPE_PATTERN),
    text("pool_name", "Only this pool.", longest=MAX_POOL_NAME),
    whole("limit", "Most pools in one answer.", least=1, most=MAX_POOLS, default=DEFAULT_POOLS),
    text("after", "From the `Link` header of the page before.", longest=9, pattern="[0-9]{1,9}"),
)


async def explain(request: Request) -> Response:
    query = CapacityQuery(**read_query(request, EXPLAIN_PARAMETERS))
    return answer(await wiring_of(request).insight.explain(query))


async def fit(request: Request) -> Response:
    query = CapacityQuery(**read_query(request, FIT_PARAMETERS))
    return answer(await wiring_of(request).insight.fit(query))


async def summarise(request: Request) -> Response:
    sent: dict[str, Any] = read_query(request, SUMMARY_PARAMETERS)
    insight = wiring_of(request).insight
    agent_type, pool_name = sent.get("agent_type"), sent.get("pool_name")
    if sent.get("by") is TotalsBy.GPU_TYPE and pool_name is None:
        return answer((await insight.overall(agent_type=agent_type)).rows, headers=NO_STORE)
    after = sent.pop("after", None)
    rows, following = await insight.summary(
        agent_type=agent_type, pool_name=pool_name, limit=sent.get("limit", DEFAULT_POOLS), after=after
    )
    headers = dict(NO_STORE)
    if pool_name is None:
        headers["X-Total-Count"] = str((await insight.overall(agent_type=agent_type)).pools)
    if following is not None:
        headers["Link"] = next_link(request, sent, after=following)
    return answer(rows, headers=headers)
