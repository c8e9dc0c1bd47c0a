"""The ledger's tables: the only truth about events, calls and what was counted.

Statements use the tables below the models: the ledger reads and writes rows, not objects. Times are UTC, by
the ledger's clock (`Store.now`); an event's `created_at` is its provider's. Rows that belong to an event are
deleted with it.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Field, SQLModel

from receiver.ledger.states import UNFINISHED, CallState, State
from receiver.ledger.store import Store
from receiver.ledger.text import TEXT_MAX

metadata = SQLModel.metadata


def _among(column: str, values: Iterable[str]) -> str:
    """Return a condition as SQL, for the schema itself: there are no parameters in it."""
    return "{} in ({})".format(column, ", ".join(f"'{value}'" for value in values))


def _partial(name: str, *columns: str, where: str, unique: bool = False) -> sa.Index:
    condition = sa.text(where)
    return sa.Index(name, *columns, unique=unique, postgresql_where=condition, sqlite_where=condition)


_UNFINISHED = _among("state", UNFINISHED)


class EventRow(SQLModel, table=True):
    """One event, unique by source and event id; also the outbox row that the sweeper reads."""

    __tablename__ = "event"
    __table_args__ = (
        # First-seen is decided here, by ON CONFLICT DO NOTHING.
        sa.UniqueConstraint("source", "event_id", name="event_once"),
        sa.CheckConstraint(_among("state", State), name="event_state"),
        sa.CheckConstraint("(state = 'processing') = (lease_until is not null)", name="event_lease"),
        # What workers and sweepers look for; finished events, the bulk of the table, are in none of these.
        _partial("event_due", "due_at", where=_UNFINISHED),
        _partial("event_nudged", "nudged_at", where=f"{_UNFINISHED} and nudges > 0"),
        _partial("event_lease", "lease_until", where="state = 'processing'"),
        # Lists, newest first: ids begin with their time.
        sa.Index("event_by_state", "state", "id"),
        sa.Index("event_by_source", "source", "id"),
        sa.Index("event_by_type", "type", "id"),
        # Equal bytes under another id.
        sa.Index("event_by_body", "source", "body_hash"),
        # What is pruned, counted as done, and reopened.
        _partial("event_by_end", "source", "finished_at", where="finished_at is not null"),
        _partial(
            "event_payload", "source", "finished_at", where="finished_at is not null and body is not null"
        ),
        _partial("event_done", "finished_at", "source", where="state = 'done'"),
        _partial("event_ignored", "finished_at", where="state = 'ignored'"),
    )

    id: UUID = Field(primary_key=True)
    source: str = Field(max_length=TEXT_MAX)
    event_id: str = Field(max_length=TEXT_MAX)
    type: str = Field(max_length=TEXT_MAX)
    state: str = Field(max_length=16)
    generation: int = 0
    attempts: int = 0
    crashes: int = 0
    claim: int = 0
    """The fencing token: each claim adds one."""
    lease_until: datetime | None = None
    due_at: datetime
    received_at: datetime
    created_at: datetime | None = None
    finished_at: datetime | None = None
    revived_at: datetime | None = None
    """When a new delivery last brought it back from dead."""
    nudged_at: datetime | None = None
    nudges: int = 0
    discarded: bool = False
    """A person ended it: no delivery revives it."""
    reason: str | None = Field(default=None, sa_type=sa.Text)
    duplicates: int = 0
    first_duplicate_at: datetime | None = None
    last_duplicate_at: datetime | None = None
    conflicts: int = 0
    suspected_replay: bool = False
    parked_call: UUID | None = None
    """The call that a person must decide about before it goes on."""
    traceparent: str | None = Field(default=None, max_length=64)
    """The trace of its first delivery, as W3C Trace Context writes it."""
    calls_changed: bool = False
    """A succeeded step was asked for again with other bytes, and returned its stored response."""
    address: str | None = Field(default=None, max_length=TEXT_MAX)
    body_hash: str = Field(max_length=64)
    """The SHA-256 of the body, in hex; it outlives the body."""
    body: bytes | None = None
    """None once its payload is erased, and then so are `headers` and `address`."""
    headers: str | None = Field(default=None, sa_type=sa.Text)
    content_type: str | None = Field(default=None, max_length=TEXT_MAX)


class DuplicateRow(SQLModel, table=True):
    """One of an event's last 20 duplicates: a ring of slots, so that a storm cannot grow it."""

    __tablename__ = "duplicate"

    event: UUID = Field(primary_key=True, foreign_key="event.id", ondelete="CASCADE")
    slot: int = Field(primary_key=True)
    at: datetime
    address: str | None = Field(default=None, max_length=TEXT_MAX)


class ConflictRow(SQLModel, table=True):
    """Another body that came under an event's id; the first ten are kept."""

    __tablename__ = "conflict"

    event: UUID = Field(primary_key=True, foreign_key="event.id", ondelete="CASCADE")
    body_hash: str = Field(primary_key=True, max_length=64)
    at: datetime
    body: bytes
    headers: str = Field(sa_type=sa.Text)
    content_type: str | None = Field(default=None, max_length=TEXT_MAX)
    promoted_to: UUID | None = None


class AttemptRow(SQLModel, table=True):
    """One run of a handler, named by the fencing token of its claim."""

    __tablename__ = "attempt"

    event: UUID = Field(primary_key=True, foreign_key="event.id", ondelete="CASCADE")
    claim: int = Field(primary_key=True)
    generation: int
    number: int
    started_at: datetime
    ended_at: datetime | None = None
    outcome: str | None = Field(default=None, max_length=16)
    reason: str | None = Field(default=None, sa_type=sa.Text)
    error: str | None = Field(default=None, sa_type=sa.Text)
    worker: str = Field(max_length=TEXT_MAX)


class ActionRow(SQLModel, table=True):
    """What a person or a rule did to an event: who, what, when."""

    __tablename__ = "action"

    id: UUID = Field(primary_key=True)
    event: UUID = Field(index=True, foreign_key="event.id", ondelete="CASCADE")
    generation: int
    at: datetime
    what: str = Field(max_length=16)
    who: str = Field(max_length=TEXT_MAX)
    was: str = Field(max_length=16)
    call: UUID | None = None


class CallRow(SQLModel, table=True):
    """One logical operation of an event's generation, or the successor of one that will not be sent again."""

    __tablename__ = "call"
    __table_args__ = (
        sa.CheckConstraint(_among("state", CallState), name="call_state"),
        sa.Index("call_in_order", "event", "generation", "position", "successor", unique=True),
        sa.Index("call_step", "event", "generation", "step", "successor", unique=True),
        # One call for all events that name it so; one that never happened gives its name back.
        _partial(
            "call_once",
            "api",
            "once",
            where="once is not null and state not in ('rejected', 'replaced')",
            unique=True,
        ),
        sa.Index("call_by_state", "state", "id"),
    )

    id: UUID = Field(primary_key=True)
    event: UUID = Field(foreign_key="event.id", ondelete="CASCADE")
    generation: int
    position: int
    step: str = Field(max_length=TEXT_MAX)
    successor: int = 0
    state: str = Field(max_length=16)
    claim: int
    """The fencing token of the latest attempt that named it."""
    protection: str = Field(max_length=16)
    api: str = Field(max_length=64)
    method: str = Field(max_length=16)
    url: str = Field(sa_type=sa.Text)
    headers: str = Field(sa_type=sa.Text)
    body: bytes | None = None
    key: str | None = Field(default=None, max_length=64)
    fingerprint: str = Field(max_length=64)
    credential: str | None = Field(default=None, max_length=64)
    once: str | None = Field(default=None, max_length=TEXT_MAX)
    shares: UUID | None = None
    """The call of another event, with the same `once`, whose response this one gets."""
    changed_to: str | None = Field(default=None, max_length=64)
    """The fingerprint of other bytes that the handler asked for later."""
    use_stored: bool = False
    outcome: str | None = Field(default=None, max_length=16)
    reason: str | None = Field(default=None, sa_type=sa.Text)
    created_at: datetime
    trying_since: datetime
    due_at: datetime | None = None
    quiet_until: datetime | None = None
    first_sent_at: datetime | None = None
    expires_at: datetime | None = None
    ended_at: datetime | None = None
    sends: int = 0
    status: int | None = None
    answer_headers: str | None = Field(default=None, sa_type=sa.Text)
    answer: bytes | None = None


class SendRow(SQLModel, table=True):
    """One time that a call's request went out; `open` until its own definite answer, or the call's."""

    __tablename__ = "send"
    __table_args__ = (sa.Index("send_of_call", "call", "number", unique=True),)

    id: UUID = Field(primary_key=True)
    call: UUID = Field(foreign_key="call.id", ondelete="CASCADE")
    number: int
    claim: int
    at: datetime
    sending_until: datetime
    open: bool
    ended_at: datetime | None = None
    outcome: str | None = Field(default=None, max_length=16)
    status: int | None = None
    reason: str | None = Field(default=None, sa_type=sa.Text)


class ValueRow(SQLModel, table=True):
    """A value that a handler computed once for a generation, as JSON."""

    __tablename__ = "call_value"

    event: UUID = Field(primary_key=True, foreign_key="event.id", ondelete="CASCADE")
    generation: int = Field(primary_key=True)
    step: str = Field(primary_key=True, max_length=TEXT_MAX)
    at: datetime
    value: str = Field(sa_type=sa.Text)


class ReplayRow(SQLModel, table=True):
    """A bulk retry, rerun or discard: its list stands in `replay_step` before the first step."""

    __tablename__ = "replay"

    id: UUID = Field(primary_key=True)
    what: str = Field(max_length=16)
    who: str = Field(max_length=TEXT_MAX)
    filter: str = Field(sa_type=sa.Text)
    at: datetime
    total: int
    finished_at: datetime | None = None


class ReplayStepRow(SQLModel, table=True):
    """One event of a bulk run with the generation it was seen in; done at most once."""

    __tablename__ = "replay_step"
    __table_args__ = (_partial("replay_step_open", "replay", "event", where="outcome is null"),)

    replay: UUID = Field(primary_key=True, foreign_key="replay.id", ondelete="CASCADE")
    event: UUID = Field(primary_key=True)
    generation: int
    outcome: str | None = Field(default=None, max_length=16)


class WorkerRow(SQLModel, table=True):
    """A worker process and its latest sign of life."""

    __tablename__ = "worker"

    name: str = Field(primary_key=True, max_length=TEXT_MAX)
    started_at: datetime
    seen_at: datetime


class SampleRow(SQLModel, table=True):
    """One of a source's last 100 rejections, without body or values."""

    __tablename__ = "rejection_sample"

    id: UUID = Field(primary_key=True)
    source: str = Field(max_length=TEXT_MAX, index=True)
    reason: str = Field(max_length=64)
    at: datetime
    address: str | None = Field(default=None, max_length=TEXT_MAX)


class CounterRow(SQLModel, table=True):
    """A total since the ledger began, or its part of one minute; `counters.py` says what is counted."""

    __tablename__ = "counter"

    # In this order, so that all totals of a kind, and all of its minutes, stand together in the key's index.
    kind: str = Field(primary_key=True, max_length=16)
    minute: datetime = Field(primary_key=True)
    name: str = Field(primary_key=True, max_length=TEXT_MAX)
    what: str = Field(primary_key=True, max_length=TEXT_MAX)
    slot: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    count: int = Field(sa_type=sa.BigInteger)


class AlertRow(SQLModel, table=True):
    """The latest alert about one subject: the row decides which worker sends the next, and when."""

    __tablename__ = "alert"

    kind: str = Field(primary_key=True, max_length=16)
    name: str = Field(primary_key=True, max_length=TEXT_MAX)
    what: str = Field(primary_key=True, max_length=TEXT_MAX)
    told: int = Field(sa_type=sa.BigInteger)
    """The total when it was last told."""
    told_at: datetime | None = None
    taken_until: datetime | None = None
    """While a worker sends, until when nobody else does."""


class KeyRow(SQLModel, table=True):
    """An idempotency key of our own API, within its scope.

    `variant` is the request's fingerprint where another body is another request, else empty.
    """

    __tablename__ = "idempotency_key"
    __table_args__ = (
        sa.Index("idempotency_key_once", "policy", "scope", "key", "variant", unique=True),
        sa.Index("idempotency_key_life", "expires_at"),
    )

    id: UUID = Field(primary_key=True)
    policy: str = Field(max_length=64)
    scope: str = Field(max_length=64)
    key: str = Field(sa_type=sa.Text)
    variant: str = Field(max_length=64)
    fingerprint: str = Field(max_length=64)
    token: int = 1
    lease_until: datetime | None = None
    first_at: datetime
    expires_at: datetime
    status: int | None = None
    headers: str | None = Field(default=None, sa_type=sa.Text)
    body: bytes | None = None


def _table(model: type[SQLModel]) -> sa.Table:
    found: sa.Table = model.__table__  # type: ignore[attr-defined]
    return found


EVENT = _table(EventRow)
DUPLICATE = _table(DuplicateRow)
CONFLICT = _table(ConflictRow)
ATTEMPT = _table(AttemptRow)
ACTION = _table(ActionRow)
CALL = _table(CallRow)
SEND = _table(SendRow)
VALUE = _table(ValueRow)
REPLAY = _table(ReplayRow)
REPLAY_STEP = _table(ReplayStepRow)
WORKER = _table(WorkerRow)
SAMPLE = _table(SampleRow)
COUNTER = _table(CounterRow)
ALERT = _table(AlertRow)
KEY = _table(KeyRow)


def insert_for(store: Store, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
    """Return an INSERT of the store's dialect, for its ON CONFLICT clause."""
    return sqlite.insert(table) if store.sqlite else postgresql.insert(table)


def in_state(store: Store, *states: State) -> sa.ColumnElement[Any]:
    """Return a condition on states of many rows that the partial indexes serve on both databases."""
    # SQLite does not match a partial index with parameters, nor `=` with `IN`, and takes any state for rare
    # unless a likelihood is given.
    named: list[sa.ColumnElement[Any]] = [sa.literal_column(f"'{state}'") for state in states]
    found = EVENT.c.state.in_(named) if len(named) > 1 else EVENT.c.state == named[0]
    return sa.func.likelihood(found, sa.literal_column("0.9")) if store.sqlite else found
