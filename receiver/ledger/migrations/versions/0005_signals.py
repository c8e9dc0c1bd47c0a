"""What telemetry keeps: totals that only grow, what alerts told, and the trace that an event began in."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

NAMES = ("kind", 16), ("name", 255), ("what", 255)


def names() -> list[sa.Column[str]]:
    return [sa.Column(name, sa.String(length=length), nullable=False) for name, length in NAMES]


def upgrade() -> None:
    op.add_column("event", sa.Column("traceparent", sa.String(length=64), nullable=True))
    op.create_table(
        "tally",
        *names(),
        sa.Column("slot", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "name", "what", "slot"),
    )
    op.create_table(
        "alert",
        *names(),
        sa.Column("told", sa.BigInteger(), nullable=False),
        sa.Column("told_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("taken_until", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("kind", "name", "what"),
    )


def downgrade() -> None:
    op.drop_table("alert")
    op.drop_table("tally")
    op.drop_column("event", "traceparent")
