"""The journal of outbound calls, and what an event knows of it."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

ONCE = sa.text("once is not null and state not in ('rejected', 'replaced')")
STATES = "state in ('pending', 'succeeded', 'rejected', 'parked', 'replaced', 'given up')"


def upgrade() -> None:
    op.add_column("event", sa.Column("parked_call", sa.Uuid(), nullable=True))
    op.add_column(
        "event", sa.Column("calls_changed", sa.Boolean(), server_default=sa.false(), nullable=False)
    )
    op.add_column("action", sa.Column("call", sa.Uuid(), nullable=True))
    op.create_table(
        "call",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("event", sa.Uuid(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("step", sa.String(length=255), nullable=False),
        sa.Column("successor", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("claim", sa.Integer(), nullable=False),
        sa.Column("protection", sa.String(length=16), nullable=False),
        sa.Column("api", sa.String(length=64), nullable=False),
        sa.Column("method", sa.String(length=16), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("headers", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.Column("key", sa.String(length=64), nullable=True),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("credential", sa.String(length=64), nullable=True),
        sa.Column("once", sa.String(length=255), nullable=True),
        sa.Column("shares", sa.Uuid(), nullable=True),
        sa.Column("changed_to", sa.String(length=64), nullable=True),
        sa.Column("use_stored", sa.Boolean(), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("trying_since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("quiet_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("first_sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("sends", sa.Integer(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("answer_headers", sa.Text(), nullable=True),
        sa.Column("answer", sa.LargeBinary(), nullable=True),
        sa.CheckConstraint(STATES, name="call_state"),
        sa.ForeignKeyConstraint(["event"], ["event.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("call_in_order", "call", ["event", "generation", "position", "successor"], unique=True)
    op.create_index("call_step", "call", ["event", "generation", "step", "successor"], unique=True)
    op.create_index(
        "call_once", "call", ["api", "once"], unique=True, postgresql_where=ONCE, sqlite_where=ONCE
    )
    op.create_index("call_by_state", "call", ["state", "id"])
    op.create_table(
        "send",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("call", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("claim", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sending_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("open", sa.Boolean(), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome", sa.String(length=16), nullable=True),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["call"], ["call.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("send_of_call", "send", ["call", "number"], unique=True)
    op.create_table(
        "call_value",
        sa.Column("event", sa.Uuid(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("step", sa.String(length=255), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["event"], ["event.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("event", "generation", "step"),
    )


def downgrade() -> None:
    op.drop_table("call_value")
    op.drop_table("send")
    op.drop_table("call")
    op.drop_column("action", "call")
    op.drop_column("event", "calls_changed")
    op.drop_column("event", "parked_call")
