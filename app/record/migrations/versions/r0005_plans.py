"""Plans and their tasks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    an_id = sa.Uuid(as_uuid=False).with_variant(sa.String(36), "sqlite")
    document = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
    timestamp = sa.DateTime(timezone=True)

    op.create_table(
        "plans",
        sa.Column("plan_id", an_id, nullable=False),
        sa.Column("created_at", timestamp, nullable=False),
        sa.PrimaryKeyConstraint("plan_id", name="plans_pkey"),
    )
    op.create_table(
        "plan_tasks",
        sa.Column("task_id", an_id, nullable=False),
        sa.Column("plan_id", an_id, nullable=False),
        sa.Column("position", sa.Integer, nullable=False, comment="its place in the plan"),
        sa.Column(
            "queued_us", sa.BigInteger, nullable=False, comment="when the plan was made: older plans come first"
        ),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("agent_type", sa.String(32), nullable=False),
        sa.Column("pool_name", sa.String(128)),
        sa.Column("gpu_type", sa.String(16)),
        sa.Column("gpu_vram_gb", sa.Double, nullable=False),
        sa.Column("cpu_cores", sa.Integer, nullable=False),
        sa.Column("memory_gb", sa.Double, nullable=False),
        sa.Column("depends_on", document, comment="names of tasks of the same plan; null: none"),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("agent_id", an_id),
        sa.Column(
            "free_gpu_vram_gb", sa.Double, comment="what the agent had free of everything we had placed there"
        ),
        sa.Column("free_cpu_cores", sa.Integer),
        sa.Column("free_memory_gb", sa.Double),
        sa.Column("assigned_at", timestamp),
        sa.Column("ended_at", timestamp),
        sa.PrimaryKeyConstraint("task_id", name="plan_tasks_pkey"),
    )
    op.create_index("plan_tasks_plan_id_position_idx", "plan_tasks", ["plan_id", "position"])
    op.create_index("plan_tasks_status_queued_us_idx", "plan_tasks", ["status", "queued_us"])
    op.create_table(
        "planner_state",
        sa.Column("name", sa.String(16), nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False, comment="grows with every assignment"),
        sa.PrimaryKeyConstraint("name", name="planner_state_pkey"),
    )


def downgrade() -> None:
    for name in ("planner_state", "plan_tasks", "plans"):
        op.drop_table(name)
