"""Settings: environment variables with the prefix `HEADROOM_`, or a `.env` file. docs/settings.md lists them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


def _default_data_dir() -> Path:
    return Path.home() / ".local" / "share" / "headroom"


class Settings(BaseSettings):
    """Everything an operator can turn. The description of each field is its line in docs/settings.md."""

    model_config = SettingsConfigDict(
        env_prefix="HEADROOM_", env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    host: str = Field(default="127.0.0.1", description="Address the API listens on.")
    port: int = Field(default=8000, ge=0, le=65_535, description="Port the API listens on; 0 picks one.")
    url: str = Field(
        default="http://127.0.0.1:8000", description="API that the commands for people ask (`find`, `top`, …)."
    )
    data_dir: Path = Field(
        default_factory=_default_data_dir,
        description="Where the embedded server and the SQLite record keep their files.",
    )
    redis_url: str | None = Field(
        default=None,
        description="Redis or Valkey to use (`redis://`, `rediss://`, `unix://`); else embedded.",
    )
    embedded_port: int = Field(
        default=6390,
        ge=0,
        le=65_535,
        description="Loopback port of the embedded server, for redis-cli; another one if it is taken.",
    )
    database_url: str | None = Field(
        default=None,
        description="SQLAlchemy URL of the record (`postgresql+asyncpg://…`, `sqlite+aiosqlite:///…`); "
        "a plain `postgresql://` is taken as asyncpg's. Unset: SQLite in the data directory.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="Least severe line that is logged."
    )
    log_format: Literal["console", "json"] = Field(
        default="console", description="Readable lines or one JSON object a line."
    )

    metrics_host: str = Field(default="127.0.0.1", description="Address that workers serve their metrics on.")
    metrics_port: int = Field(
        default=0, ge=0, le=65_535, description="Port that a worker serves its metrics on; 0 serves none."
    )

    heartbeat_interval_s: float = Field(
        default=30.0, gt=0, le=3600, description="How often an agent is asked to report."
    )
    heartbeat_target_per_s: float = Field(
        default=4_000.0, gt=0, description="Heartbeats per second that the fleet is spread out to."
    )
    offline_after_s: float = Field(
        default=90.0, gt=0, le=86_400, description="Silence after which an agent is offline."
    )
    forget_after_d: float = Field(
        default=30.0,
        gt=0,
        description="Days offline after which an agent leaves the index; the record keeps it.",
    )
    sweep_interval_s: float = Field(
        default=1.0, gt=0, le=60, description="How often the reaper looks for silent agents."
    )

    redis_timeout_s: float = Field(
        default=1.0, gt=0, le=30, description="Longest wait for one answer of Redis on the request path."
    )
    redis_pool_size: int = Field(
        default=32, ge=1, le=1_000, description="Most connections to Redis per client of a process."
    )
    stream_block_s: float = Field(
        default=1.0, gt=0, le=30, description="How long a worker waits for new log entries in one read."
    )
    stream_timeout_s: float = Field(
        default=5.0, gt=0, le=60, description="Socket timeout of the workers' readers; above STREAM_BLOCK_S."
    )
    stream_max_entries: int = Field(
        default=1_000_000, ge=1_000, description="Longest backlog the stream may hold before it is trimmed."
    )
    takeover_after_s: float = Field(
        default=10.0, gt=0, description="Idle time after which another worker takes over a read entry."
    )
    ingest_batch: int = Field(
        default=512, ge=1, le=10_000, description="Most log entries the ingest reads at once."
    )
    record_batch: int = Field(
        default=2_000, ge=1, le=10_000, description="Most log entries the recorder commits at once."
    )

    database_timeout_s: float = Field(
        default=5.0, gt=0, le=120, description="Longest wait for one statement or connection of the record."
    )
    database_pool_size: int = Field(
        default=5, ge=1, le=100, description="Most connections to the record per process."
    )
    history_every_s: float = Field(
        default=300.0, gt=0, description="Length of a history slot; one sample an agent and slot is kept."
    )
    history_keep_d: float = Field(default=30.0, gt=0, description="Days after which history samples are deleted.")
    events_keep_d: float = Field(default=365.0, gt=0, description="Days after which transitions are deleted.")

    max_waiting: int = Field(
        default=6_000,
        ge=0,
        description="Most searches that may wait, and most listeners to events, per API process.",
    )
    max_open_tasks: int = Field(
        default=10_000, ge=1, description="Most tasks of plans that have not ended; more are refused."
    )
    frame_ancestors: str = Field(
        default="'self'",
        pattern=r"^[^;,\r\n]+$",
        description="Which pages may show widgets in a frame, as in a Content-Security-Policy: "
        "`'self'`, `*`, or origins with spaces between them.",
    )

    max_body_bytes: int = Field(default=4 * 1024 * 1024, ge=1024, description="Largest request body that is read.")
    shutdown_after_s: float = Field(
        default=8.0,
        gt=0,
        le=60,
        description="How long a process may drain after SIGTERM; what takes longer is cut off.",
    )

    @field_validator("data_dir", mode="after")
    @classmethod
    def _absolute(cls, data_dir: Path) -> Path:
        return data_dir.expanduser().absolute()

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.stream_block_s >= self.stream_timeout_s:
            raise ValueError(
                "HEADROOM_STREAM_BLOCK_S must be below HEADROOM_STREAM_TIMEOUT_S: "
                "a blocked read would look like a dead server"
            )
        if self.offline_after_s < 2 * self.heartbeat_interval_s:
            raise ValueError(
                "HEADROOM_OFFLINE_AFTER_S must be at least twice HEADROOM_HEARTBEAT_INTERVAL_S: "
                "one lost heartbeat would look like a dead agent"
            )
        return self

    @property
    def requests_end_after_s(self) -> float:
        """How long the API lets requests finish; in the rest of `shutdown_after_s` its own loops end."""
        return self.shutdown_after_s * 2 / 3

    @property
    def record_url(self) -> str:
        """The record's URL with its async driver named."""
        if self.database_url is None:
            return f"sqlite+aiosqlite:///{self.data_dir / 'headroom.db'}"
        for plain in ("postgresql://", "postgres://"):
            if self.database_url.startswith(plain):
                return "postgresql+asyncpg://" + self.database_url.removeprefix(plain)
        if self.database_url.startswith("sqlite:///"):
            return "sqlite+aiosqlite:///" + self.database_url.removeprefix("sqlite:///")
        return self.database_url
