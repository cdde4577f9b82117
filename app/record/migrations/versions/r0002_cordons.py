"""Cordons, and events of flapping agents kept as one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    agent_id = sa.Uuid(as_uuid=False).with_variant(sa.String(36), "sqlite")
    document = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")

    op.create_table(
        "agent_cordons",
        sa.Column("agent_id", agent_id, nullable=False),
        sa.Column("cordon", document, comment="who asked for it, why, and until when; null: lifted"),
        sa.Column("expires_ms", sa.BigInteger, comment="when it ends by itself; null: never"),
        sa.Column("entry_ms", sa.BigInteger, nullable=False, comment="id of the log entry that set or lifted it"),
        sa.Column("entry_n", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("agent_id", name="agent_cordons_pkey"),
        comment="Beside the registry: an agent may be cordoned before its first heartbeat is recorded.",
    )
    for column in (
        sa.Column("cordon", document, comment="with to_status cordoned: who asked for it, why, and until when"),
        sa.Column(
            "flapping",
            sa.Boolean,
            nullable=False,
            server_default=sa.false(),
            comment="following ones are kept in this",
        ),
        sa.Column(
            "changes",
            sa.Integer,
            nullable=False,
            server_default="1",
            comment="changes that are kept in this row",
        ),
        sa.Column("last_at", sa.DateTime(timezone=True), comment="the newest of these; null: at"),
        sa.Column(
            "last_ms", sa.BigInteger, nullable=False, server_default="0", comment="its log entry; 0-0: the key"
        ),
        sa.Column("last_n", sa.BigInteger, nullable=False, server_default="0"),
    ):
        op.add_column("agent_events", column)


def downgrade() -> None:
    for name in ("last_n", "last_ms", "last_at", "changes", "flapping", "cordon"):
        op.drop_column("agent_events", name)
    op.drop_table("agent_cordons")
