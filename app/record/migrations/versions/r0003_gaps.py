"""Gaps: log entries that were trimmed before they were recorded."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "record_gaps",
        sa.Column("first_ms", sa.BigInteger, nullable=False, comment="the last log entry before the gap"),
        sa.Column("first_n", sa.BigInteger, nullable=False),
        sa.Column("last_ms", sa.BigInteger, nullable=False, comment="the first log entry after it"),
        sa.Column("last_n", sa.BigInteger, nullable=False),
        sa.Column("entries", sa.BigInteger, nullable=False, comment="log entries that were lost"),
        sa.PrimaryKeyConstraint("first_ms", "first_n", name="record_gaps_pkey"),
        comment="History and events between these two are incomplete; the registry was reconciled.",
    )


def downgrade() -> None:
    op.drop_table("record_gaps")
