"""The ledger: events, attempts, duplicates, conflicts, actions, rejections, replays."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "event",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("source", sa.String(length=255), nullable=False),
        sa.Column("event_id", sa.String(length=255), nullable=False),
        sa.Column("type", sa.String(length=255), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("crashes", sa.Integer(), nullable=False),
        sa.Column("claim", sa.Integer(), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revived_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("nudged_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("nudges", sa.Integer(), nullable=False),
        sa.Column("discarded", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("duplicates", sa.Integer(), nullable=False),
        sa.Column("first_duplicate_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_duplicate_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("conflicts", sa.Integer(), nullable=False),
        sa.Column("suspected_replay", sa.Boolean(), nullable=False),
        sa.Column("address", sa.String(length=255), nullable=True),
        sa.Column("body_hash", sa.String(length=64), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.Column("headers", sa.Text(), nullable=True),
        sa.Column("content_type", sa.String(length=255), nullable=True),
        sa.CheckConstraint("(state = 'processing') = (lease_until is not null)", name="event_lease"),
        sa.CheckConstraint(
            "state in ('received', 'processing', 'waiting', 'done', 'parked', 'dead', 'ignored')",
            name="event_state",
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("source", "event_id", name="event_once"),
    )
    op.create_index("event_by_body", "event", ["source", "body_hash"])
    op.create_index(
        "event_by_end",
        "event",
        ["source", "finished_at"],
        postgresql_where=sa.text("finished_at is not null"),
        sqlite_where=sa.text("finished_at is not null"),
    )
    op.create_index("event_by_source", "event", ["source", "id"])
    op.create_index("event_by_state", "event", ["state", "id"])
    op.create_index("event_by_type", "event", ["type", "id"])
    op.create_index(
        "event_due",
        "event",
        ["due_at"],
        postgresql_where=sa.text("state in ('received', 'waiting')"),
        sqlite_where=sa.text("state in ('received', 'waiting')"),
    )
    op.create_index(
        "event_ignored",
        "event",
        ["finished_at"],
        postgresql_where=sa.text("state = 'ignored'"),
        sqlite_where=sa.text("state = 'ignored'"),
    )
    op.create_index(
        "event_payload",
        "event",
        ["source", "finished_at"],
        postgresql_where=sa.text("finished_at is not null and body is not null"),
        sqlite_where=sa.text("finished_at is not null and body is not null"),
    )
    op.create_index(
        "event_lease",
        "event",
        ["lease_until"],
        postgresql_where=sa.text("state = 'processing'"),
        sqlite_where=sa.text("state = 'processing'"),
    )
    op.create_index(
        "event_nudged",
        "event",
        ["nudged_at"],
        postgresql_where=sa.text("state in ('received', 'waiting') and nudges > 0"),
        sqlite_where=sa.text("state in ('received', 'waiting') and nudges > 0"),
    )
    op.create_table(
        "rejection",
        sa.Column("source", sa.String(length=255), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=False),
        sa.Column("minute", sa.DateTime(timezone=True), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("source", "reason", "minute"),
    )
    op.create_table(
        "rejection_sample",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("source", sa.String(length=255), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("address", sa.String(length=255), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_rejection_sample_source", "rejection_sample", ["source"])
    op.create_table(
        "replay",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("what", sa.String(length=16), nullable=False),
        sa.Column("who", sa.String(length=255), nullable=False),
        sa.Column("filter", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "action",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("event", sa.Uuid(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("what", sa.String(length=16), nullable=False),
        sa.Column("who", sa.String(length=255), nullable=False),
        sa.Column("was", sa.String(length=16), nullable=False),
        sa.ForeignKeyConstraint(["event"], ["event.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_action_event", "action", ["event"])
    op.create_table(
        "attempt",
        sa.Column("event", sa.Uuid(), nullable=False),
        sa.Column("claim", sa.Integer(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome", sa.String(length=16), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("worker", sa.String(length=255), nullable=False),
        sa.ForeignKeyConstraint(["event"], ["event.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("event", "claim"),
    )
    op.create_table(
        "conflict",
        sa.Column("event", sa.Uuid(), nullable=False),
        sa.Column("body_hash", sa.String(length=64), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("headers", sa.Text(), nullable=False),
        sa.Column("content_type", sa.String(length=255), nullable=True),
        sa.Column("promoted_to", sa.Uuid(), nullable=True),
        sa.ForeignKeyConstraint(["event"], ["event.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("event", "body_hash"),
    )
    op.create_table(
        "duplicate",
        sa.Column("event", sa.Uuid(), nullable=False),
        sa.Column("slot", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("address", sa.String(length=255), nullable=True),
        sa.ForeignKeyConstraint(["event"], ["event.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("event", "slot"),
    )
    op.create_table(
        "replay_step",
        sa.Column("replay", sa.Uuid(), nullable=False),
        sa.Column("event", sa.Uuid(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=True),
        sa.ForeignKeyConstraint(["replay"], ["replay.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("replay", "event"),
    )
    op.create_index(
        "replay_step_open",
        "replay_step",
        ["replay", "event"],
        postgresql_where=sa.text("outcome is null"),
        sqlite_where=sa.text("outcome is null"),
    )


def downgrade() -> None:
    op.drop_table("replay_step")
    op.drop_table("duplicate")
    op.drop_table("conflict")
    op.drop_table("attempt")
    op.drop_table("action")
    op.drop_table("replay")
    op.drop_table("rejection_sample")
    op.drop_table("rejection")
    op.drop_table("event")
