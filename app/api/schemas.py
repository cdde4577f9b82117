"""Heartbeats as they come in over HTTP: the one place where a report is validated, and its way to the domain.

Strict: no coercion from text or booleans, nothing infinite, no unknown spelling of a known thing. Unknown fields
are ignored, so that newer agents can talk to older servers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Self, TypeVar

import msgpack
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError

from app.api.fields import MAX_HOSTNAME, MAX_POOL_NAME, TEXT_PATTERN, FieldFaultError, check_text
from app.api.problems import BODY, FieldError, InvalidBodyError
from app.errors import InvalidAgentIdError
from app.models.capacity import MAX_CORES, AgentStatus, GpuType
from app.models.heartbeat import Gpu, Heartbeat, ResourceMetrics, RunningClaim
from app.models.identity import (
    AGENT_TYPE_PATTERN,
    DEFAULT_AGENT_TYPE,
    DEFAULT_POOL_NAME,
    AgentId,
    parse_agent_id,
)

MAX_BATCH: Final = 1_000
MAX_GPUS: Final = 256
MAX_RUNNING_CLAIMS: Final = 1_024
MAX_GB: Final = 2.0**20
MAX_LOAD: Final = 1e6
MAX_CPU_PERCENT: Final = 100.0 * MAX_CORES
"""Some tools report 100 % per core."""
MAX_ITEM_ERRORS: Final = 20

_EXACT_FLOAT: Final = 2.0**53
_SENT_AT: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})",
    re.ASCII,
)
_EPOCH_2000_S: Final = 946_684_800
_EPOCH_2101_S: Final = 4_133_980_800


def _whole(value: Any) -> Any:
    """JSON has one number type: 4.0 is a whole number, as far as floats are exact."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT_FLOAT:
        return int(value)
    return value


def _unsigned_zero(value: float) -> float:
    return value + 0.0  # -0.0 becomes 0.0


def _text(value: str) -> str:
    try:
        return check_text(value)
    except FieldFaultError as fault:
        raise PydanticCustomError("not_text", fault.message) from None


def _sent_at(value: Any) -> Any:
    if value is None or isinstance(value, datetime):
        return value
    if isinstance(value, msgpack.Timestamp):
        if not _EPOCH_2000_S <= value.to_unix() < _EPOCH_2101_S:
            raise PydanticCustomError("out_of_range", "Must be in the years 2000 to 2100")
        return value.to_datetime()
    if not isinstance(value, str) or not _SENT_AT.fullmatch(value):
        raise PydanticCustomError("type", "Must be ISO 8601 with an offset from UTC")
    if not 2000 <= int(value[:4]) <= 2100:
        raise PydanticCustomError("out_of_range", "Must be in the years 2000 to 2100")
    try:
        return datetime.fromisoformat(value.upper()).astimezone(UTC)
    except ValueError:
        raise PydanticCustomError("type", "Must be a date and time that exist") from None


def _agent_id(value: Any) -> Any:
    if not isinstance(value, str):
        raise PydanticCustomError("type", "Must be a UUID")
    try:
        return parse_agent_id(value)
    except InvalidAgentIdError:
        raise PydanticCustomError("type", "Must be a UUID") from None


class _Described:
    """Adds to a field's JSON schema what its own validator checks."""

    def __init__(self, **keywords: Any) -> None:
        self._keywords = keywords

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {**handler(core_schema), **self._keywords}


Cores = Annotated[int, Field(ge=0, le=MAX_CORES), BeforeValidator(_whole)]
Amount = Annotated[float, Field(ge=0, le=MAX_GB), AfterValidator(_unsigned_zero)]
Load = Annotated[float, Field(ge=0, le=MAX_LOAD), AfterValidator(_unsigned_zero)]
CpuPercent = Annotated[float, Field(ge=0, le=MAX_CPU_PERCENT), AfterValidator(_unsigned_zero)]
Percent = Annotated[float, Field(ge=0, le=100), AfterValidator(_unsigned_zero)]
PlainText = Annotated[str, AfterValidator(_text), _Described(pattern=TEXT_PATTERN)]
Sequential = Annotated[int, Field(ge=0, le=2**63 - 1), BeforeValidator(_whole)]
Uuid = Annotated[AgentId, BeforeValidator(_agent_id), WithJsonSchema({"type": "string", "format": "uuid"})]
Moment = Annotated[
    datetime, BeforeValidator(_sent_at), WithJsonSchema({"type": "string", "format": "date-time", "maxLength": 40})
]
Status = Annotated[AgentStatus, Field(strict=False)]
Gpus = Annotated[list["GpuIn"], Field(max_length=MAX_GPUS)]


class _In(BaseModel):
    model_config = ConfigDict(
        strict=True, extra="ignore", frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )


class StrictIn(_In):
    """For bodies of operators and planners: a misspelt field must not be taken for one that was left out."""

    model_config = ConfigDict(extra="forbid")


def _check_free(free: float | None, total: float | None) -> None:
    if free is not None and total is not None and free > total:
        raise PydanticCustomError("free_above_total", "More is free than there is in total")


class ResourceMetricsIn(_In):
    """What the agent measured; GB means GiB. Everything may be missing or null."""

    cpu_percent: CpuPercent | None = None
    cpu_cores_physical: Cores | None = None
    cpu_cores_available: Cores | None = None
    cpu_load_1min: Load | None = None
    cpu_load_5min: Load | None = None
    memory_percent: Percent | None = None
    memory_available_gb: Amount | None = None
    gpu_vram_total_gb: Amount | None = None
    gpu_vram_available_gb: Amount | None = None
    gpu_type: Annotated[GpuType, Field(strict=False)] | None = None

    @model_validator(mode="after")
    def _free_within_total(self) -> Self:
        _check_free(self.gpu_vram_available_gb, self.gpu_vram_total_gb)
        _check_free(self.cpu_cores_available, self.cpu_cores_physical)
        return self

    def to_domain(self) -> ResourceMetrics:
        return ResourceMetrics(**{name: getattr(self, name) for name in _METRICS})


class GpuIn(_In):
    index: Annotated[int, Field(ge=0, le=65_535), BeforeValidator(_whole)]
    uuid: Annotated[PlainText, Field(max_length=128)] = ""
    name: Annotated[PlainText, Field(max_length=256)] = ""
    vram_total_gb: Amount | None = None
    vram_available_gb: Amount | None = None

    @model_validator(mode="after")
    def _free_within_total(self) -> Self:
        _check_free(self.vram_available_gb, self.vram_total_gb)
        return self

    def to_domain(self) -> Gpu:
        return Gpu(
            index=self.index,
            uuid=self.uuid,
            name=self.name,
            vram_total_gb=self.vram_total_gb or 0.0,
            vram_available_gb=self.vram_available_gb or 0.0,
        )


class RunningClaimIn(_In):
    """What a claim uses now."""

    claim_id: Annotated[PlainText, Field(min_length=1, max_length=128)]
    gpu_vram_gb: Amount = 0.0
    cpu_cores: Cores = 0
    memory_gb: Amount = 0.0

    def to_domain(self) -> RunningClaim:
        return RunningClaim(
            claim_id=self.claim_id,
            gpu_vram_gb=self.gpu_vram_gb,
            cpu_cores=self.cpu_cores,
            memory_gb=self.memory_gb,
        )


class HeartbeatIn(_In):
    """One report. Only `resource_metrics` is required, and may be null or empty."""

    model_config = ConfigDict(
        json_schema_extra={"dependentRequired": {"boot_id": ["seq"], "seq": ["boot_id"]}},
    )

    agent_id: Annotated[Uuid | None, Field(description="If sent, the same as in the path.")] = None
    agent_type: Annotated[str, Field(pattern=f"^{AGENT_TYPE_PATTERN}$")] = DEFAULT_AGENT_TYPE
    pool_name: Annotated[PlainText, Field(min_length=1, max_length=MAX_POOL_NAME)] = DEFAULT_POOL_NAME
    hostname: Annotated[PlainText, Field(max_length=MAX_HOSTNAME)] = ""
    status: Status = AgentStatus.ONLINE
    boot_id: Annotated[str, Field(pattern="^[ -~]{1,64}$")] | None = None
    seq: Sequential | None = None
    sent_at: Moment | None = None
    gpus: Gpus = []
    running_claims: Annotated[list[RunningClaimIn], Field(max_length=MAX_RUNNING_CLAIMS)] = []
    resource_metrics: ResourceMetricsIn | None

    @field_validator("gpus")
    @classmethod
    def _own_indices(cls, gpus: list[GpuIn]) -> list[GpuIn]:
        if len({gpu.index for gpu in gpus}) != len(gpus):
            raise PydanticCustomError("repeated", "Two GPUs have the same index")
        return gpus

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if (self.boot_id is None) != (self.seq is None):
            raise PydanticCustomError("incomplete", "boot_id and seq are sent both or neither")
        return self

    def to_domain(self, agent_id: AgentId) -> Heartbeat:
        return Heartbeat(
            agent_id=agent_id,
            agent_type=self.agent_type,
            pool_name=self.pool_name,
            hostname=self.hostname,
            status=self.status,
            boot_id=self.boot_id,
            seq=self.seq,
            sent_at=self.sent_at,
            gpus=tuple(gpu.to_domain() for gpu in self.gpus),
            running_claims=tuple(claim.to_domain() for claim in self.running_claims),
            resource_metrics=None if self.resource_metrics is None else self.resource_metrics.to_domain(),
        )


class BatchedHeartbeatIn(HeartbeatIn):
    """A report within a batch, which has to name its agent."""

    agent_id: Annotated[Uuid, Field(description="Whose report this is.")]


_BATCH_SCHEMA: Final = WithJsonSchema(
    {
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_BATCH,
        "items": {"$ref": "#/components/schemas/BatchedHeartbeatIn"},
    }
)


class HeartbeatsIn(_In):
    """Up to 1,000 reports. Read item by item, so that one bad report does not cost the others."""

    heartbeats: Annotated[list[Any], Field(min_length=1, max_length=MAX_BATCH), _BATCH_SCHEMA]


_METRICS: Final = tuple(ResourceMetricsIn.model_fields)

_CODES: Final[Mapping[str, str]] = {
    "missing": "missing",
    "finite_number": "not_finite",
    "greater_than": "out_of_range",
    "greater_than_equal": "out_of_range",
    "less_than_equal": "out_of_range",
    "less_than": "out_of_range",
    "string_too_short": "length",
    "string_too_long": "length",
    "string_unicode": "not_text",
    "string_pattern_mismatch": "pattern",
    "too_short": "length",
    "too_long": "length",
    "enum": "choice",
    "literal_error": "choice",
    "extra_forbidden": "unknown_field",
    # the codes of this module's own rules
    "not_text": "not_text",
    "type": "type",
    "out_of_range": "out_of_range",
    "free_above_total": "free_above_total",
    "repeated": "repeated",
    "incomplete": "incomplete",
    "exclusive": "exclusive",
    "unknown_task": "unknown_task",
    "circular": "circular",
}
"""From the validator's names to ours, which are documented and stay; anything else is a wrong `type`."""

_MESSAGES: Final[Mapping[str, str]] = {
    "model_type": "Must be an object",
    "string_unicode": "Must be Unicode text",
    "extra_forbidden": "Unknown field",
}

M = TypeVar("M", bound=BaseModel)


def read_as(model: type[M], document: Any, *, limit: int = MAX_ITEM_ERRORS) -> M:
    """Validates a decoded body.

    Raises:
        InvalidBodyError: with at most `limit` faults, none of which repeats what was sent.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise InvalidBodyError(_faults(error, limit)) from None


def _faults(error: ValidationError, limit: int) -> Sequence[FieldError]:
    details = error.errors(include_url=False, include_context=False, include_input=False)[:limit]
    return [
        FieldError(
            _path(_named(detail)),
            _CODES.get(detail["type"], "type"),
            _MESSAGES.get(detail["type"], detail["msg"]),
        )
        for detail in details
    ]


def _named(detail: ErrorDetails) -> tuple[int | str, ...]:
    """Where the fault is, in names of ours: that of an unknown field is the sender's, and not repeated."""
    return detail["loc"][:-1] if detail["type"] == "extra_forbidden" else detail["loc"]


def _path(location: tuple[int | str, ...]) -> str:
    """`("gpus", 3, "index")` as `gpus[3].index`; the body itself as `body`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".") or BODY
