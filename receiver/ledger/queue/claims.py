"""Claims: a lease, a fencing token, and guarded UPDATEs. Zero rows is a normal outcome.

`claim_due` takes the events that have waited longest and begins an attempt of each.
`renew` extends the leases of claims that still hold, `expire` takes back those that have run out.
"""

from collections import Counter
from collections.abc import Iterable
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

# PostgreSQL takes few events for due, and would read and sort them all: an index has them in order.
IN_ORDER = "SET LOCAL enable_bitmapscan = off"

# What a claim reads of an event, and what an attempt is begun with.
_OF_CLAIM = [
    EVENT.c[name]
    for name in (
        *("id", "claim", "source", "event_id", "type", "generation", "attempts", "due_at", "created_at"),
        *("received_at", "body", "headers", "content_type", "traceparent"),
    )
]
_OF_ATTEMPT = ["event", "claim", "generation", "number", "started_at", "worker"]


def claim_due(
    store: Store, *, limit: int, lease: timedelta, worker: str, where: sa.ColumnElement[bool] | None = None
) -> list[Claim]:
    """Claim up to `limit` due events, those that have waited longest first; `where` leaves others alone."""
    build = _claim_on_sqlite if store.sqlite else _claim_on_postgres
    # Built once, as it runs for every event: to build it costs as much as to run it.
    statement = store.built(build) if where is None else build(store, where)
    moment = store.moment()
    parameters = moment | {"limit": limit, "worker_": clipped(worker)}
    parameters |= {"until": moment["now"] + lease} if store.sqlite else {"lease": lease}
    with store.write(options=IN_ORDER) as connection:
        rows = connection.execute(statement, parameters).all()
        if not rows:
            return []
        if store.sqlite:
            attempts = {"ids": [row.id for row in rows], "worker_": clipped(worker)} | moment
            connection.execute(store.built(_insert_attempts), attempts)
            more_due = connection.execute(store.built(_anything_due), moment).first() is not None
        else:
            more_due = rows[0].more_due
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
                more_due=more_due,
            )
            for row in sorted(rows, key=lambda row: row.due_at)
        ]


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
    """Take one batch of expired leases back, each counted as a crash; at the fifth the event parks.

    Returns how many.
    """
    expired = (
        sa.select(EVENT.c.id)
        .where(EVENT.c.state.in_(leaves(Move.EXPIRE)), EVENT.c.lease_until <= store.now())
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
    with store.write(limit=LONG) as connection:
        rows = connection.execute(taken).all()
        if rows:
            end = {"ended_at": store.now(), "outcome": Move.EXPIRE}
            unended = (ATTEMPT.c.event.in_([row.id for row in rows]), ATTEMPT.c.ended_at.is_(None))
            connection.execute(sa.update(ATTEMPT).where(*unended).values(**end))
            expiries = [(CounterKind.ATTEMPT, row.source, str(Move.EXPIRE)) for row in rows]
            parked = [(CounterKind.PARKED, row.source, row.type) for row in rows if row.state == State.PARKED]
            bump(store, connection, Counter(expiries + parked))
        return len(rows)


def is_due(store: Store, now: sa.ColumnElement[datetime]) -> sa.ColumnElement[bool]:
    """Return the condition under which an event may be claimed at a time."""
    return sa.and_(in_state(store, *UNFINISHED), EVENT.c.due_at <= now)


def _claim_on_postgres(store: Store, where: sa.ColumnElement[bool] | None = None) -> sa.Select[Any]:
    """Build the claim of the `limit` events that have been due for longest, with their attempts."""
    until = store.clock + sa.bindparam("lease", type_=sa.Interval())
    claimed = _claim_oldest(store, until, where).cte("claimed")
    copied = claimed.c.id, claimed.c.claim, claimed.c.generation, claimed.c.attempts
    begun = ATTEMPT.insert().from_select(_OF_ATTEMPT, sa.select(*copied, *_of_this_claim(store))).cte("begun")
    limit = sa.bindparam("limit", type_=sa.Integer())
    # All parts of a statement see the ledger as it was before: those that are claimed here are due as well.
    due = sa.select(EVENT.c.id).where(is_due(store, store.clock)).order_by(EVENT.c.due_at).limit(limit + 1)
    more = sa.select(sa.func.count() > limit).select_from(due.subquery()).scalar_subquery()
    return sa.select(claimed, more.label("more_due")).add_cte(begun)


def _claim_on_sqlite(store: Store, where: sa.ColumnElement[bool] | None = None) -> ReturningUpdate[Any]:
    """Build the claim of the `limit` events that have been due for longest; `_insert_attempts` follows."""
    return _claim_oldest(store, sa.bindparam("until", type_=UTCDateTime()), where)


def _claim_oldest(
    store: Store, until: sa.ColumnElement[datetime], where: sa.ColumnElement[bool] | None
) -> ReturningUpdate[Any]:
    oldest = sa.select(EVENT.c.id, EVENT.c.claim).where(is_due(store, store.clock)).order_by(EVENT.c.due_at)
    if where is not None:
        oldest = oldest.where(where)
    # A CTE is evaluated once; as a plain subquery, PostgreSQL may run it again for each row, past its limit.
    chosen = (
        oldest.limit(sa.bindparam("limit", type_=sa.Integer()))
        .with_for_update(skip_locked=True)
        .cte("chosen")
    )
    change = {
        "state": enters(Move.CLAIM),
        "lease_until": until,
        "claim": EVENT.c.claim + 1,
        "attempts": EVENT.c.attempts + 1,
    }
    # The token is compared: by the time that its row is locked, another worker may have had the event. To ask
    # again whether it is due would let PostgreSQL look at all that are: 25 ms at 7,000 of them, measured.
    same = EVENT.c.id == chosen.c.id, EVENT.c.claim == chosen.c.claim
    return sa.update(EVENT).where(*same).values(**change).returning(*_OF_CLAIM)


def _insert_attempts(store: Store) -> sa.Insert:
    """Build the INSERT of an attempt for each of the events `ids`, all just claimed; for SQLite."""
    copied = EVENT.c.id, EVENT.c.claim, EVENT.c.generation, EVENT.c.attempts
    which = EVENT.c.id.in_(sa.bindparam("ids", expanding=True))
    return ATTEMPT.insert().from_select(_OF_ATTEMPT, sa.select(*copied, *_of_this_claim(store)).where(which))


def _of_this_claim(store: Store) -> tuple[sa.ColumnElement[Any], ...]:
    return store.clock, sa.bindparam("worker_", type_=sa.Text())


def _anything_due(store: Store) -> sa.Select[Any]:
    return sa.select(EVENT.c.id).where(is_due(store, store.clock)).limit(1)


def _was_tried(connection: sa.Connection, row: sa.Row[Any]) -> bool:
    """Whether an earlier attempt may have run a handler."""
    earlier = sa.and_(ATTEMPT.c.event == row.id, ATTEMPT.c.claim < row.claim)
    handled = ATTEMPT.c.outcome.is_distinct_from(Move.IGNORE)
    return connection.execute(sa.select(ATTEMPT.c.claim).where(earlier, handled).limit(1)).first() is not None
