"""The journal's tables. A call's key, request and credential are fixed before its first byte leaves."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, Index, Text, text
from sqlmodel import Field, SQLModel

from receiver.ledger.calls.states import CallState
from receiver.ledger.models import table
from receiver.ledger.texts import TEXT_MAX

_states = ", ".join(f"'{state}'" for state in CallState)
_once = text("once is not null and state not in ('rejected', 'replaced')")


class CallRow(SQLModel, table=True):
    """One logical operation of an event's generation, or the successor of one that will not be sent again."""

    __tablename__ = "call"

    __table_args__ = (
        CheckConstraint(f"state in ({_states})", name="call_state"),
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
