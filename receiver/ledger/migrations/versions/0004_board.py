"""What the dashboard reads every few seconds: done by minute, duplicates by minute, living workers."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

DONE = sa.text("state = 'done'")


def upgrade() -> None:
    op.create_index(
        "event_done", "event", ["finished_at", "source"], postgresql_where=DONE, sqlite_where=DONE
    )
    op.create_table(
        "duplicate_minute",
        sa.Column("minute", sa.DateTime(timezone=True), nullable=False),
        sa.Column("source", sa.String(length=255), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("minute", "source"),
    )
    op.create_table(
        "worker",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )


def downgrade() -> None:
    op.drop_table("worker")
    op.drop_table("duplicate_minute")
    op.drop_index("event_done", "event")
