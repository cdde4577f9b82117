"""`PATCH` of agents: an operator's cordon, for one agent or for all that a filter names."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from starlette.requests import Request
from starlette.responses import Response

from app.api.agents import LIST_PARAMETERS, path_agent_id
from app.api.answers import answer
from app.api.body import read_document
from app.api.documents import ChangedAgentDocument, ChangedAgentsDocument, CordonDocument
from app.api.problems import FieldError, InvalidBodyError, InvalidParametersError
from app.api.query import read_query
from app.api.schemas import Moment, PlainText, StrictIn, read_as
from app.api.wiring import wiring_of
from app.models.agent import AgentFilter
from app.models.cordon import Cordon

MAX_REASON: Final = 500
MAX_ACTOR: Final = 128
MAX_EXPIRES_IN_S: Final = 10 * 366 * 86_400

FILTER_PARAMETERS: Final = tuple(one for one in LIST_PARAMETERS if one.name not in {"limit", "after"})


class CordonIn(StrictIn):
    """Who keeps the agent free of new work, why, and until when. Without an expiry only an operator ends it."""

    reason: Annotated[PlainText, Field(min_length=1, max_length=MAX_REASON)]
    actor: Annotated[PlainText, Field(min_length=1, max_length=MAX_ACTOR)]
    expires_at: Moment | None = None
    expires_in_s: Annotated[float, Field(gt=0, le=MAX_EXPIRES_IN_S)] | None = None

    @model_validator(mode="after")
    def _one_expiry(self) -> Self:
        if self.expires_at is not None and self.expires_in_s is not None:
            raise PydanticCustomError("exclusive", "Either expires_at or expires_in_s, not both")
        return self

    def to_domain(self, now: datetime) -> Cordon:
        """Raises InvalidBodyError for an expiry that has passed."""
        expires_at = self.expires_at
        if self.expires_in_s is not None:
            expires_at = now + timedelta(seconds=self.expires_in_s)
        if expires_at is not None and expires_at <= now:
            raise InvalidBodyError([FieldError("cordon.expires_at", "out_of_range", "Must be in the future")])
        return Cordon(reason=self.reason, actor=self.actor, since=now, expires_at=expires_at)


class AgentChangeIn(StrictIn):
    """What an operator changes of an agent; a `cordon` of null lifts it."""

    cordon: CordonIn | None


async def change_agent(request: Request) -> Response:
    agent_id = path_agent_id(request)
    read_query(request, ())
    cordon = await _read_cordon(request)
    done = await wiring_of(request).cordons.change(agent_id, cordon)
    return answer(ChangedAgentDocument(agent_id, _document(cordon), done.recorded))


async def change_agents(request: Request) -> Response:
    sent: dict[str, Any] = read_query(request, FILTER_PARAMETERS)
    if not sent:
        named = ", ".join(one.name for one in FILTER_PARAMETERS)
        message = f"Say which agents, by at least one of {named}"
        raise InvalidParametersError([FieldError("query", "missing", message)])
    cordon = await _read_cordon(request)
    done = await wiring_of(request).cordons.change_all(AgentFilter(**sent), cordon)
    return answer(ChangedAgentsDocument(done.agents, done.changed, _document(cordon), done.recorded))


async def _read_cordon(request: Request) -> Cordon | None:
    wiring = wiring_of(request)
    document = await read_document(request, max_bytes=wiring.settings.max_body_bytes)
    change = read_as(AgentChangeIn, document)
    now = datetime.fromtimestamp(wiring.clock.now_ms() / 1000, UTC)
    return None if change.cordon is None else change.cordon.to_domain(now)


def _document(cordon: Cordon | None) -> CordonDocument | None:
    return None if cordon is None else CordonDocument.of(cordon)
