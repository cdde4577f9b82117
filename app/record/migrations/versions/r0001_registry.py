"""Registry, events and history of the agents."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    agent_id = sa.Uuid(as_uuid=False).with_variant(sa.String(36), "sqlite")
    document = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
    timestamp = sa.DateTime(timezone=True)

    op.create_table(
        "agent_registry",
        sa.Column("agent_id", agent_id, nullable=False),
        sa.Column("agent_type", sa.String(32), nullable=False),
        sa.Column("pool_name", sa.String(128), nullable=False),
        sa.Column("hostname", sa.Text, nullable=False),
        sa.Column("status", sa.String(16), nullable=False, comment="reported_status, or offline after a silence"),
        sa.Column("reported_status", sa.String(16), nullable=False, comment="what the last heartbeat said"),
        sa.Column("last_heartbeat_at", timestamp, nullable=False),
        sa.Column("registered_at", timestamp, nullable=False),
        sa.Column("resource_metrics", document, comment="as the agent sent them; null: none"),
        sa.Column("gpus", document),
        sa.Column("boot_id", sa.String(64), comment="the boot in force"),
        sa.Column("seq", sa.BigInteger),
        sa.Column("retired_boots", document, comment="earlier boots, newest first: [[boot_id, seq], ...]"),
        sa.Column("last_ms", sa.BigInteger, nullable=False, comment="stream id of the last applied heartbeat"),
        sa.Column("last_n", sa.BigInteger, nullable=False),
        sa.Column(
            "offline_ms", sa.BigInteger, nullable=False, comment="stream id up to which it was declared offline"
        ),
        sa.Column("offline_n", sa.BigInteger, nullable=False),
        sa.Column("forgotten_at", timestamp, comment="a tombstone: hidden until a newer heartbeat revives it"),
        sa.Column("has_metrics", sa.Boolean, nullable=False),
        sa.Column("gpu_vram_available_gb", sa.Double, nullable=False),
        sa.Column("cpu_cores_available", sa.Integer, nullable=False),
        sa.Column("memory_available_gb", sa.Double, nullable=False),
        sa.Column("gpu_type", sa.String(16), nullable=False),
        sa.PrimaryKeyConstraint("agent_id", name="agent_registry_pkey"),
        postgresql_with={"fillfactor": 70},
    )
    op.create_index(
        "agent_registry_placeable_idx",
        "agent_registry",
        [
            "agent_type",
            sa.column("gpu_vram_available_gb").desc(),
            sa.column("agent_id").desc(),
            "cpu_cores_available",
        ],
        postgresql_where=sa.text("status = 'online' AND has_metrics"),
        sqlite_where=sa.text("status = 'online' AND has_metrics = 1"),
    )

    op.create_table(
        "agent_events",
        sa.Column("agent_id", agent_id, nullable=False),
        sa.Column("entry_ms", sa.BigInteger, nullable=False, comment="id of the log entry"),
        sa.Column("entry_n", sa.BigInteger, nullable=False),
        sa.Column(
            "from_status",
            sa.String(16),
            comment="to_status of the event before; equal to to_status: a repetition",
        ),
        sa.Column("to_status", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(16), nullable=False),
        sa.Column("at", timestamp, nullable=False),
        sa.PrimaryKeyConstraint("agent_id", "entry_ms", "entry_n", name="agent_events_pkey"),
    )
    op.create_index("agent_events_entry_ms_idx", "agent_events", ["entry_ms"])

    op.create_table(
        "agent_history",
        sa.Column("agent_id", agent_id, nullable=False),
        sa.Column("slot_ms", sa.BigInteger, nullable=False, comment="start of the time slot"),
        sa.Column("at", timestamp, nullable=False, comment="the newest heartbeat of the slot"),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("resource_metrics", document),
        sa.PrimaryKeyConstraint("agent_id", "slot_ms", name="agent_history_pkey"),
        comment="Closed slots; the newest sample of an agent is its row in agent_registry.",
    )
    op.create_index("agent_history_slot_ms_idx", "agent_history", ["slot_ms"])

    op.create_table(
        "record_positions",
        sa.Column(
            "name", sa.String(16), nullable=False, comment="entry: greatest seen; heartbeat: newest applied"
        ),
        sa.Column("ms", sa.BigInteger, nullable=False),
        sa.Column("n", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="record_positions_pkey"),
    )


def downgrade() -> None:
    op.drop_table("record_positions")
    op.drop_table("agent_history")
    op.drop_table("agent_events")
    op.drop_table("agent_registry")
