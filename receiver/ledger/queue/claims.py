"""Claims: a lease, a fencing token, and guarded UPDATEs. Zero rows is a normal outcome.

`claim` takes one event by its id, `claim_due` those that have waited longest; each begins an attempt.
`renew` extends the leases of claims that still hold, `expire` takes back those that have run out.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.sql.dml import ReturningUpdate
from sqlmodel import UTCDateTime

from receiver.ledger.counters import CounterKind, bump
from receiver.ledger.lease import Claim, claim_guard
from receiver.ledger.states import CRASH_LIMIT, UNFINISHED, Move, State, enters, leaves
from receiver.ledger.store import LONG, Store
from receiver.ledger.tables import ATTEMPT, EVENT, in_state
from receiver.ledger.text import clipped

# Leases taken back in one transaction: short enough to let deliveries through on SQLite.
EXPIRE_BATCH = 1000


def claim(store: Store, event: UUID, *, lease: timedelta, worker: str) -> Claim | None:
    """Claim one event if it is due, or if its lease has run out; None when it cannot be claimed."""
    statement, chosen = store.built(_claim_one), {"event_": event}
    with store.write() as connection:
        rows = connection.execute(statement, chosen | _lease_parameters(store, lease)).all()
        if not rows and _expire(store, connection, EVENT.c.id == event):
            # Asked with a new time: the event is due since it was taken back.
            rows = connection.execute(statement, chosen | _lease_parameters(store, lease)).all()
        return next(iter(_begin_attempts(store, connection, rows, worker)), None)


def claim_due(
    store: Store, *, limit: int, lease: timedelta, worker: str, where: sa.ColumnElement[bool] | None = None
) -> list[Claim]:
    """Claim up to `limit` due events, those that have waited longest first; `where` leaves others alone."""
    oldest = store.built(_claim_oldest) if where is None else _claim_oldest(store, where)
    with store.write() as connection:
        rows = connection.execute(oldest, {"limit": limit} | _lease_parameters(store, lease)).all()
        return _begin_attempts(store, connection, rows, worker)


def renew(store: Store, claims: Iterable[Claim], *, lease: timedelta) -> set[UUID]:
    """Extend the leases that are still held; return the events whose claims were lost."""
    lost = set()
    with store.write() as connection:
        new = store.after(lease)
        # A call under way may have been given more than a lease: keep the later end.
        later = sa.case((EVENT.c.lease_until > new, EVENT.c.lease_until), else_=new)
        # In the order in which `record` locks its rows, else the two deadlock on PostgreSQL.
        for held in sorted(claims, key=lambda item: (item.source, item.event_id)):
            extended = sa.update(EVENT).where(*claim_guard(held)).values(lease_until=later)
            if not connection.execute(extended).rowcount:
                lost.add(held.event)
    return lost


def expire(store: Store) -> int:
    """Take expired leases back, each counted as a crash; at the fifth the event parks. Returns how many."""
    with store.write(limit=LONG) as connection:
        return _expire(store, connection, sa.true())


def is_due(store: Store, now: sa.ColumnElement[datetime]) -> sa.ColumnElement[bool]:
    """Return the condition under which an event may be claimed at a time."""
    return sa.and_(in_state(store, *UNFINISHED), EVENT.c.due_at <= now)


# Statements of a claim are built once: they run for every event, and to build one costs as much as to run it.


def _claim_one(store: Store) -> ReturningUpdate[Any]:
    """Build the claim of the event `event_`."""
    return _claim(store, EVENT.c.id == sa.bindparam("event_", type_=sa.Uuid()))


def _claim_oldest(store: Store, where: sa.ColumnElement[bool] | None = None) -> ReturningUpdate[Any]:
    """Build the claim of the `limit` events that have been due for longest."""
    oldest = sa.select(EVENT.c.id).where(is_due(store, store.clock)).order_by(EVENT.c.due_at)
    if where is not None:
        oldest = oldest.where(where)
    # A CTE is evaluated once; as a plain subquery, PostgreSQL may run it again for each row, past its limit.
    chosen = (
        oldest.limit(sa.bindparam("limit", type_=sa.Integer()))
        .with_for_update(skip_locked=True)
        .cte("chosen")
    )
    return _claim(store, EVENT.c.id.in_(sa.select(chosen.c.id)))


def _claim(store: Store, which: sa.ColumnElement[bool]) -> ReturningUpdate[Any]:
    """Build the claim of what is chosen, if it is due; `_lease_parameters` has its parameters."""
    until: Any = sa.bindparam("until", type_=UTCDateTime())
    if not store.sqlite:
        until = store.clock + sa.bindparam("lease", type_=sa.Interval())
    change = {
        "state": enters(Move.CLAIM),
        "lease_until": until,
        "claim": EVENT.c.claim + 1,
        "attempts": EVENT.c.attempts + 1,
    }
    # Due is asked again: by the time that its row is locked, another worker may have had the event.
    return sa.update(EVENT).where(which, is_due(store, store.clock)).values(**change).returning(*EVENT.c)


def _lease_parameters(store: Store, lease: timedelta) -> dict[str, Any]:
    moment = store.moment()
    return moment | ({"until": moment["now"] + lease} if store.sqlite else {"lease": lease})


def _insert_attempts(store: Store) -> sa.Insert:
    """Build the INSERT of an attempt for each of the events `ids`, all just claimed."""
    copied = EVENT.c.id, EVENT.c.claim, EVENT.c.generation, EVENT.c.attempts
    fresh = store.clock, sa.bindparam("worker_", type_=sa.Text())
    which: sa.ColumnElement[bool] = EVENT.c.id.in_(sa.bindparam("ids", expanding=True))
    if not store.sqlite:
        which = EVENT.c.id == sa.func.any(sa.bindparam("ids", type_=sa.ARRAY(sa.Uuid)))
    names = ["event", "claim", "generation", "number", "started_at", "worker"]
    return ATTEMPT.insert().from_select(names, sa.select(*copied, *fresh).where(which))


def _begin_attempts(
    store: Store, connection: sa.Connection, rows: Sequence[sa.Row[Any]], worker: str
) -> list[Claim]:
    """Begin an attempt for each event just claimed; return the claims, the longest due first."""
    if not rows:
        return []
    parameters = {"ids": [row.id for row in rows], "worker_": clipped(worker)}
    connection.execute(store.built(_insert_attempts), parameters | store.moment())
    return [
        Claim(
            event=row.id,
            token=row.claim,
            source=row.source,
            event_id=row.event_id,
            type=row.type,
            generation=row.generation,
            attempt=row.attempts,
            created_at=row.created_at,
            received_at=row.received_at,
            body=row.body,
            headers=row.headers or "{}",
            content_type=row.content_type,
            traceparent=row.traceparent,
            # Most events are claimed once: only the others cost a query.
            tried=row.claim > 1 and _was_tried(connection, row),
        )
        for row in sorted(rows, key=lambda row: row.due_at)
    ]


def _was_tried(connection: sa.Connection, row: sa.Row[Any]) -> bool:
    """Whether an earlier attempt may have run a handler."""
    earlier = sa.and_(ATTEMPT.c.event == row.id, ATTEMPT.c.claim < row.claim)
    handled = ATTEMPT.c.outcome.is_distinct_from(Move.IGNORE)
    return connection.execute(sa.select(ATTEMPT.c.claim).where(earlier, handled).limit(1)).first() is not None


def _expire(store: Store, connection: sa.Connection, which: sa.ColumnElement[bool]) -> int:
    """Take back one batch of expired leases among the chosen events; return how many."""
    expired = (
        sa.select(EVENT.c.id)
        .where(EVENT.c.state.in_(leaves(Move.EXPIRE)), EVENT.c.lease_until <= store.now(), which)
        .order_by(EVENT.c.lease_until)
        .limit(EXPIRE_BATCH)
        .with_for_update(skip_locked=True)
        .cte("expired")
    )
    last = EVENT.c.crashes + 1 >= CRASH_LIMIT
    loop = f"Crash loop: {CRASH_LIMIT} workers vanished while they held it. Retry it once that is mended."
    change = {
        "state": sa.case((last, enters(Move.PARK)), else_=enters(Move.EXPIRE)),
        "crashes": EVENT.c.crashes + 1,
        "lease_until": None,
        "due_at": store.now(),
        "nudged_at": None,
        "nudges": 0,
        "reason": sa.case((last, loop), else_="The worker that held it vanished; its lease ran out."),
    }
    columns = EVENT.c.id, EVENT.c.source, EVENT.c.type, EVENT.c.state
    taken = (
        sa.update(EVENT).where(EVENT.c.id.in_(sa.select(expired.c.id))).values(**change).returning(*columns)
    )
    rows = connection.execute(taken).all()
    if rows:
        end = {"ended_at": store.now(), "outcome": Move.EXPIRE}
        unended = (ATTEMPT.c.event.in_([row.id for row in rows]), ATTEMPT.c.ended_at.is_(None))
        connection.execute(sa.update(ATTEMPT).where(*unended).values(**end))
        expiries = [(CounterKind.ATTEMPT, row.source, str(Move.EXPIRE)) for row in rows]
        parked = [(CounterKind.PARKED, row.source, row.type) for row in rows if row.state == State.PARKED]
        bump(store, connection, Counter(expiries + parked))
    return len(rows)
