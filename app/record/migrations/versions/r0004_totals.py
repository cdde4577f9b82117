"""Totals of the fleet over time."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "fleet_history",
        sa.Column("slot_ms", sa.BigInteger, nullable=False, comment="start of the time slot"),
        sa.Column("agent_type", sa.String(32), nullable=False),
        sa.Column("pool_name", sa.String(128), nullable=False),
        sa.Column("gpu_type", sa.String(16), nullable=False),
        sa.Column(
            "at_ms", sa.BigInteger, nullable=False, comment="when the totals were read; the newest of the slot"
        ),
        sa.Column("online", sa.Integer, nullable=False),
        sa.Column("placeable", sa.Integer, nullable=False),
        sa.Column("gpu_vram_available_gb", sa.Double, nullable=False, comment="of placeable agents"),
        sa.Column("gpu_vram_total_gb", sa.Double, nullable=False),
        sa.Column("cpu_cores_available", sa.BigInteger, nullable=False, comment="of placeable agents"),
        sa.Column("cpu_cores_physical", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("slot_ms", "agent_type", "pool_name", "gpu_type", name="fleet_history_pkey"),
        comment="Totals by type, pool and GPU type over time.",
    )


def downgrade() -> None:
    op.drop_table("fleet_history")
