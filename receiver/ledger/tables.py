"""The ledger's tables: the only truth about events. Times are UTC; see `store.py` for whose clock."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ColumnElement,
    Index,
    Table,
    Text,
    UniqueConstraint,
    false,
    func,
    literal_column,
    text,
)
from sqlmodel import Field, SQLModel

from receiver.ledger.states import UNFINISHED, CallState, State
from receiver.ledger.store import Store
from receiver.ledger.text import TEXT_MAX

_states = ", ".join(f"'{state}'" for state in State)

_unfinished = text("state in ({})".format(", ".join(f"'{state}'" for state in UNFINISHED)))

_nudged = text(f"{_unfinished.text} and nudges > 0")

_processing = text(f"state = '{State.PROCESSING}'")

_ignored = text(f"state = '{State.IGNORED}'")

_ended = text("finished_at is not null")

_open = text("outcome is null")

_payload = text("finished_at is not null and body is not null")

_done = text(f"state = '{State.DONE}'")


class EventRow(SQLModel, table=True):
    """One event, unique by source and event id; also the outbox row that the sweeper reads."""

    __tablename__ = "event"
    __table_args__ = (
        UniqueConstraint("source", "event_id", name="event_once"),
        CheckConstraint(f"state in ({_states})", name="event_state"),
        CheckConstraint("(state = 'processing') = (lease_until is not null)", name="event_lease"),
        Index("event_due", "due_at", postgresql_where=_unfinished, sqlite_where=_unfinished),
        Index("event_nudged", "nudged_at", postgresql_where=_nudged, sqlite_where=_nudged),
        Index("event_lease", "lease_until", postgresql_where=_processing, sqlite_where=_processing),
        Index("event_by_state", "state", "id"),
        Index("event_by_source", "source", "id"),
        Index("event_by_type", "type", "id"),
        Index("event_by_body", "source", "body_hash"),
        Index("event_by_end", "source", "finished_at", postgresql_where=_ended, sqlite_where=_ended),
        Index("event_payload", "source", "finished_at", postgresql_where=_payload, sqlite_where=_payload),
        Index("event_done", "finished_at", "source", postgresql_where=_done, sqlite_where=_done),
        Index("event_ignored", "finished_at", postgresql_where=_ignored, sqlite_where=_ignored),
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
    lease_until: datetime | None = None
    due_at: datetime
    received_at: datetime
    created_at: datetime | None = None
    finished_at: datetime | None = None
    revived_at: datetime | None = None
    nudged_at: datetime | None = None
    nudges: int = 0
    discarded: bool = False
    reason: str | None = Field(default=None, sa_type=Text)
    duplicates: int = 0
    first_duplicate_at: datetime | None = None
    last_duplicate_at: datetime | None = None
    conflicts: int = 0
    suspected_replay: bool = False
    parked_call: UUID | None = None
    traceparent: str | None = Field(default=None, max_length=64)
    calls_changed: bool = Field(default=False, sa_column_kwargs={"server_default": false()})
    address: str | None = Field(default=None, max_length=TEXT_MAX)
    body_hash: str = Field(max_length=64)
    body: bytes | None = None
    headers: str | None = Field(default=None, sa_type=Text)
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
    headers: str = Field(sa_type=Text)
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
    reason: str | None = Field(default=None, sa_type=Text)
    error: str | None = Field(default=None, sa_type=Text)
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


class RejectionRow(SQLModel, table=True):
    """How many deliveries a source refused for one reason in one minute."""

    __tablename__ = "rejection"

    source: str = Field(primary_key=True, max_length=TEXT_MAX)
    reason: str = Field(primary_key=True, max_length=64)
    minute: datetime = Field(primary_key=True)
    count: int


class RejectionSample(SQLModel, table=True):
    """One of a source's last 100 rejections, without body or values."""

    __tablename__ = "rejection_sample"

    id: UUID = Field(primary_key=True)
    source: str = Field(max_length=TEXT_MAX, index=True)
    reason: str = Field(max_length=64)
    at: datetime
    address: str | None = Field(default=None, max_length=TEXT_MAX)


class DuplicateMinute(SQLModel, table=True):
    """How many duplicates a source got in one minute: for charts; an event's own count is exact."""

    __tablename__ = "duplicate_minute"

    minute: datetime = Field(primary_key=True)
    source: str = Field(primary_key=True, max_length=TEXT_MAX)
    count: int


class WorkerSeen(SQLModel, table=True):
    """A worker process and its latest sign of life."""

    __tablename__ = "worker"

    name: str = Field(primary_key=True, max_length=TEXT_MAX)
    started_at: datetime
    seen_at: datetime


class ReplayRow(SQLModel, table=True):
    """A bulk retry, rerun or discard: its list stands in `replay_step` before the first step."""

    __tablename__ = "replay"

    id: UUID = Field(primary_key=True)
    what: str = Field(max_length=16)
    who: str = Field(max_length=TEXT_MAX)
    filter: str = Field(sa_type=Text)
    at: datetime
    total: int
    finished_at: datetime | None = None


class ReplayStepRow(SQLModel, table=True):
    """One event of a bulk run with the generation it was seen in; done at most once."""

    __tablename__ = "replay_step"
    __table_args__ = (
        Index("replay_step_open", "replay", "event", postgresql_where=_open, sqlite_where=_open),
    )

    replay: UUID = Field(primary_key=True, foreign_key="replay.id", ondelete="CASCADE")
    event: UUID = Field(primary_key=True)
    generation: int
    outcome: str | None = Field(default=None, max_length=16)


def table(model: type[SQLModel]) -> Table:
    """Return a model's table, for statements: the ledger reads and writes rows, not objects."""
    found: Table = model.__table__  # type: ignore[attr-defined]
    return found


metadata = SQLModel.metadata

EVENT, DUPLICATE, CONFLICT, ATTEMPT = (
    table(EventRow),
    table(DuplicateRow),
    table(ConflictRow),
    table(AttemptRow),
)

ACTION, REJECTION, SAMPLE = table(ActionRow), table(RejectionRow), table(RejectionSample)

DUPLICATE_MINUTE, WORKER = table(DuplicateMinute), table(WorkerSeen)

REPLAY, REPLAY_STEP = table(ReplayRow), table(ReplayStepRow)


# The journal's tables. A call's key, request and credential are fixed before its first byte leaves.


_event_states = ", ".join(f"'{state}'" for state in CallState)

_once = text("once is not null and state not in ('rejected', 'replaced')")


class CallRow(SQLModel, table=True):
    """One logical operation of an event's generation, or the successor of one that will not be sent again."""

    __tablename__ = "call"

    __table_args__ = (
        CheckConstraint(f"state in ({_event_states})", name="call_state"),
        Index("call_in_order", "event", "generation", "position", "successor", unique=True),
        Index("call_step", "event", "generation", "step", "successor", unique=True),
        Index("call_once", "api", "once", unique=True, postgresql_where=_once, sqlite_where=_once),
        Index("call_by_state", "state", "id"),
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
    url: str = Field(sa_type=Text)
    headers: str = Field(sa_type=Text)
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
    reason: str | None = Field(default=None, sa_type=Text)
    created_at: datetime
    trying_since: datetime
    due_at: datetime | None = None
    quiet_until: datetime | None = None
    first_sent_at: datetime | None = None
    expires_at: datetime | None = None
    ended_at: datetime | None = None
    sends: int = 0
    status: int | None = None
    answer_headers: str | None = Field(default=None, sa_type=Text)
    answer: bytes | None = None


class SendRow(SQLModel, table=True):
    """One time that a call's request went out; `open` until its own definite answer, or the call's."""

    __tablename__ = "send"

    __table_args__ = (Index("send_of_call", "call", "number", unique=True),)

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
    reason: str | None = Field(default=None, sa_type=Text)


class CallValue(SQLModel, table=True):
    """A value that a handler computed once for a generation, as JSON."""

    __tablename__ = "call_value"

    event: UUID = Field(primary_key=True, foreign_key="event.id", ondelete="CASCADE")
    generation: int = Field(primary_key=True)
    step: str = Field(primary_key=True, max_length=TEXT_MAX)
    at: datetime
    value: str = Field(sa_type=Text)


CALL, SEND, VALUE = table(CallRow), table(SendRow), table(CallValue)


# The tables of totals and of alerts.


class Tally(SQLModel, table=True):
    """A total that only grows, spread over a few rows; `tally.py` says what is counted."""

    kind: str = Field(primary_key=True, max_length=16)
    name: str = Field(primary_key=True, max_length=TEXT_MAX)
    what: str = Field(primary_key=True, max_length=TEXT_MAX)
    slot: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    count: int = Field(sa_type=BigInteger)


class Alert(SQLModel, table=True):
    """What was told of one subject: the row decides which worker tells the next, and when."""

    kind: str = Field(primary_key=True, max_length=16)
    name: str = Field(primary_key=True, max_length=TEXT_MAX)
    what: str = Field(primary_key=True, max_length=TEXT_MAX)
    told: int = Field(sa_type=BigInteger)
    """The total when it was last told."""
    told_at: datetime | None = None
    taken_until: datetime | None = None
    """While a worker sends, until when nobody else does."""


TALLY, ALERT = table(Tally), table(Alert)


# The claim protocol: a lease, a fencing token, and guarded UPDATEs. Zero rows is a normal outcome.


def in_state(store: Store, *states: State) -> ColumnElement[Any]:
    """Return a condition on states of many rows that the partial indexes serve on both databases.

    SQLite does not match a partial index with parameters, nor `=` with `IN`, and takes any state for rare
    unless it is told.
    """
    named: list[ColumnElement[Any]] = [literal_column(f"'{state}'") for state in states]
    found = EVENT.c.state.in_(named) if len(named) > 1 else EVENT.c.state == named[0]
    return func.likelihood(found, literal_column("0.9")) if store.sqlite else found
