"""What a worker holds of an event, how its hold can end, and the guard of every statement in between."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Row, select

from receiver.ledger.states import Move, State
from receiver.ledger.store import Store
from receiver.ledger.tables import EVENT


@dataclass(frozen=True)
class Claim:
    """A worker's hold on an event. `token` is the fencing token: every later claim has a higher one."""

    event: UUID
    token: int
    source: str
    event_id: str
    type: str
    generation: int
    attempt: int
    created_at: datetime | None
    received_at: datetime
    body: bytes | None = field(repr=False)
    headers: str = field(repr=False)
    content_type: str | None = None
    traceparent: str | None = None
    """The trace of the delivery that first brought it."""
    tried: bool = False
    """Whether a handler may have worked on it before: then it is not ignored for want of one."""
    more_due: bool = False
    """Whether more events than were claimed with it were due."""


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended. `delay` counts from now, for moves into waiting; `error` is a traceback."""

    move: Move
    delay: timedelta = timedelta(0)
    reason: str | None = None
    error: str | None = None
    call: UUID | None = None
    """The outbound call that parks the event, or that an uncaught 401 or 403 rejected."""


def claim_guard(held: Claim) -> tuple[ColumnElement[bool], ...]:
    """Return the guard of every statement that a claim allows: no other worker has taken the event over."""
    return EVENT.c.id == held.event, EVENT.c.state == State.PROCESSING, EVENT.c.claim == held.token


def lock_alive(store: Store, connection: Connection, held: Claim) -> Row[Any] | None:
    """Lock a claimed event whose lease still runs, and return its row with `now`; None when it is lost."""
    alive = (*claim_guard(held), EVENT.c.lease_until > store.now())
    columns = EVENT.c.id, EVENT.c.lease_until, EVENT.c.revived_at, store.now().label("now")
    return connection.execute(select(*columns).where(*alive).with_for_update()).first()
