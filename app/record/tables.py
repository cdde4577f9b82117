"""The record's tables. Alembic's migrations make them; a test holds the two together.

Times that are compared are stream ids, as two integers (`…_ms`, `…_n`); the timestamp columns say the same
for people who read the tables with SQL.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Double,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    Uuid,
    false,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "ck": "%(table_name)s_%(constraint_name)s_check",
    }
)


class UtcTimestamp(TypeDecorator[datetime]):
    """A timestamp with time zone; SQLite has none and keeps UTC's digits."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        del dialect
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        del dialect
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


AGENT_UUID: Final = Uuid(as_uuid=False).with_variant(String(36), "sqlite")
"""Text in its canonical form on SQLite, which has no UUIDs; both sort alike."""

DOCUMENT: Final = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")

agent_registry = Table(
    "agent_registry",
    metadata,
    Column("agent_id", AGENT_UUID, primary_key=True),
    Column("agent_type", String(32), nullable=False),
    Column("pool_name", String(128), nullable=False),
    Column("hostname", Text, nullable=False),
    Column("status", String(16), nullable=False, comment="reported_status, or offline after a silence"),
    Column("reported_status", String(16), nullable=False, comment="what the last heartbeat said"),
    Column("last_heartbeat_at", UtcTimestamp, nullable=False),
    Column("registered_at", UtcTimestamp, nullable=False),
    Column("resource_metrics", DOCUMENT, comment="as the agent sent them; null: none"),
    Column("gpus", DOCUMENT),
    Column("boot_id", String(64), comment="the boot in force"),
    Column("seq", BigInteger),
    Column("retired_boots", DOCUMENT, comment="earlier boots, newest first: [[boot_id, seq], ...]"),
    Column("last_ms", BigInteger, nullable=False, comment="stream id of the last applied heartbeat"),
    Column("last_n", BigInteger, nullable=False),
    Column("offline_ms", BigInteger, nullable=False, comment="stream id up to which it was declared offline"),
    Column("offline_n", BigInteger, nullable=False),
    Column("forgotten_at", UtcTimestamp, comment="a tombstone: hidden until a newer heartbeat revives it"),
    # What the search asks for, with the gaps of resource_metrics filled.
    Column("has_metrics", Boolean, nullable=False),
    Column("gpu_vram_available_gb", Double, nullable=False),
    Column("cpu_cores_available", Integer, nullable=False),
    Column("memory_available_gb", Double, nullable=False),
    Column("gpu_type", String(16), nullable=False),
    # Room for in-place updates: a heartbeat that changes no placement then touches no index.
    postgresql_with={"fillfactor": 70},
)

Index(
    "agent_registry_placeable_idx",
    agent_registry.c.agent_type,
    agent_registry.c.gpu_vram_available_gb.desc(),
    agent_registry.c.agent_id.desc(),
    # Checked without a visit to the row. Freshness is not in here: it changes with each heartbeat.
    agent_registry.c.cpu_cores_available,
    # Word for word as SQLAlchemy writes the search's condition: SQLite recognises it by that alone.
    postgresql_where=text("status = 'online' AND has_metrics"),
    sqlite_where=text("status = 'online' AND has_metrics = 1"),
)

agent_events = Table(
    "agent_events",
    metadata,
    Column("agent_id", AGENT_UUID, primary_key=True),
    Column("entry_ms", BigInteger, primary_key=True, comment="id of the log entry"),
    Column("entry_n", BigInteger, primary_key=True),
    Column("from_status", String(16), comment="to_status of the event before; equal to to_status: a repetition"),
    Column("to_status", String(16), nullable=False),
    Column("reason", String(16), nullable=False),
    Column("at", UtcTimestamp, nullable=False),
    Column("cordon", DOCUMENT, comment="with to_status cordoned: who asked for it, why, and until when"),
    Column("flapping", Boolean, nullable=False, server_default=false(), comment="following ones are kept in this"),
    Column("changes", Integer, nullable=False, server_default="1", comment="changes that are kept in this row"),
    Column("last_at", UtcTimestamp, comment="the newest of these; null: at"),
    Column("last_ms", BigInteger, nullable=False, server_default="0", comment="its log entry; 0-0: the key"),
    Column("last_n", BigInteger, nullable=False, server_default="0"),
)
Index("agent_events_entry_ms_idx", agent_events.c.entry_ms)

agent_history = Table(
    "agent_history",
    metadata,
    Column("agent_id", AGENT_UUID, primary_key=True),
    Column("slot_ms", BigInteger, primary_key=True, comment="start of the time slot"),
    Column("at", UtcTimestamp, nullable=False, comment="the newest heartbeat of the slot"),
    Column("status", String(16), nullable=False),
    Column("resource_metrics", DOCUMENT),
    comment="Closed slots; the newest sample of an agent is its row in agent_registry.",
)
Index("agent_history_slot_ms_idx", agent_history.c.slot_ms)

fleet_history = Table(
    "fleet_history",
    metadata,
    Column("slot_ms", BigInteger, primary_key=True, comment="start of the time slot"),
    Column("agent_type", String(32), primary_key=True),
    Column("pool_name", String(128), primary_key=True),
    Column("gpu_type", String(16), primary_key=True),
    Column("at_ms", BigInteger, nullable=False, comment="when the totals were read; the newest of the slot"),
    Column("online", Integer, nullable=False),
    Column("placeable", Integer, nullable=False),
    Column("gpu_vram_available_gb", Double, nullable=False, comment="of placeable agents"),
    Column("gpu_vram_total_gb", Double, nullable=False),
    Column("cpu_cores_available", BigInteger, nullable=False, comment="of placeable agents"),
    Column("cpu_cores_physical", BigInteger, nullable=False),
    comment="Totals by type, pool and GPU type over time.",
)

agent_cordons = Table(
    "agent_cordons",
    metadata,
    Column("agent_id", AGENT_UUID, primary_key=True),
    Column("cordon", DOCUMENT, comment="who asked for it, why, and until when; null: lifted"),
    Column("expires_ms", BigInteger, comment="when it ends by itself; null: never"),
    Column("entry_ms", BigInteger, nullable=False, comment="id of the log entry that set or lifted it"),
    Column("entry_n", BigInteger, nullable=False),
    comment="Beside the registry: an agent may be cordoned before its first heartbeat is recorded.",
)

plans = Table(
    "plans",
    metadata,
    Column("plan_id", AGENT_UUID, primary_key=True),
    Column("created_at", UtcTimestamp, nullable=False),
)

plan_tasks = Table(
    "plan_tasks",
    metadata,
    Column("task_id", AGENT_UUID, primary_key=True),
    Column("plan_id", AGENT_UUID, nullable=False),
    Column("position", Integer, nullable=False, comment="its place in the plan"),
    Column("queued_us", BigInteger, nullable=False, comment="when the plan was made: older plans come first"),
    Column("name", String(128), nullable=False),
    Column("agent_type", String(32), nullable=False),
    Column("pool_name", String(128)),
    Column("gpu_type", String(16)),
    Column("gpu_vram_gb", Double, nullable=False),
    Column("cpu_cores", Integer, nullable=False),
    Column("memory_gb", Double, nullable=False),
    Column("depends_on", DOCUMENT, comment="names of tasks of the same plan; null: none"),
    Column("status", String(16), nullable=False),
    Column("agent_id", AGENT_UUID),
    Column("free_gpu_vram_gb", Double, comment="what the agent had free of everything we had placed there"),
    Column("free_cpu_cores", Integer),
    Column("free_memory_gb", Double),
    Column("assigned_at", UtcTimestamp),
    Column("ended_at", UtcTimestamp),
)
Index("plan_tasks_plan_id_position_idx", plan_tasks.c.plan_id, plan_tasks.c.position)
Index("plan_tasks_status_queued_us_idx", plan_tasks.c.status, plan_tasks.c.queued_us)

planner_state = Table(
    "planner_state",
    metadata,
    Column("name", String(16), primary_key=True),
    Column("generation", BigInteger, nullable=False, comment="grows with every assignment"),
)

record_positions = Table(
    "record_positions",
    metadata,
    Column("name", String(16), primary_key=True, comment="entry: greatest seen; heartbeat: newest applied"),
    Column("ms", BigInteger, nullable=False),
    Column("n", BigInteger, nullable=False),
)

record_gaps = Table(
    "record_gaps",
    metadata,
    Column("first_ms", BigInteger, primary_key=True, comment="the last log entry before the gap"),
    Column("first_n", BigInteger, primary_key=True),
    Column("last_ms", BigInteger, nullable=False, comment="the first log entry after it"),
    Column("last_n", BigInteger, nullable=False),
    Column("entries", BigInteger, nullable=False, comment="log entries that were lost"),
    comment="History and events between these two are incomplete; the registry was reconciled.",
)
