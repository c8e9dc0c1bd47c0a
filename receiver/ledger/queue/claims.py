"""The claim protocol: a lease, a fencing token, and guarded UPDATEs. Zero rows is a normal outcome."""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    Insert,
    Integer,
    Interval,
    Row,
    Text,
    Uuid,
    and_,
    bindparam,
    case,
    func,
    select,
    true,
    update,
)
from sqlalchemy.sql.dml import ReturningUpdate
from sqlmodel import UTCDateTime

from receiver.ledger.counters import CounterKind, bump
from receiver.ledger.lease import Claim, claim_guard
from receiver.ledger.states import CRASH_LIMIT, UNFINISHED, Move, State, enters, leaves
from receiver.ledger.store import Store
from receiver.ledger.tables import ATTEMPT, EVENT, in_state
from receiver.ledger.text import clipped

# The statements of a claim, built once: they run for every event, and to build them costs as much again.


def claiming(store: Store, which: ColumnElement[bool], due: ColumnElement[bool]) -> ReturningUpdate[Any]:
    """Return the statement that claims what is chosen, if it is due; `terms` has its parameters."""
    until: Any = bindparam("until", type_=UTCDateTime())
    if not store.sqlite:
        until = store.clock + bindparam("lease", type_=Interval())
    change = {
        "state": enters(Move.CLAIM),
        "lease_until": until,
        "claim": EVENT.c.claim + 1,
        "attempts": EVENT.c.attempts + 1,
    }
    return update(EVENT).where(which, due).values(**change).returning(*EVENT.c)


def terms(store: Store, lease: timedelta) -> dict[str, Any]:
    """Return the parameters of a claim that begins now."""
    moment = store.moment()
    return moment | ({"until": moment["now"] + lease} if store.sqlite else {"lease": lease})


def beginning(store: Store) -> Insert:
    """Return the statement that begins an attempt for each of the events `ids`, all just claimed."""
    shown = EVENT.c.id, EVENT.c.claim, EVENT.c.generation, EVENT.c.attempts
    told = store.clock, bindparam("worker_", type_=Text())
    mine: ColumnElement[bool] = EVENT.c.id.in_(bindparam("ids", expanding=True))
    if not store.sqlite:
        mine = EVENT.c.id == func.any(bindparam("ids", type_=ARRAY(Uuid)))
    names = ["event", "claim", "generation", "number", "started_at", "worker"]
    return ATTEMPT.insert().from_select(names, select(*shown, *told).where(mine))


def claimed(connection: Connection, row: Row[Any]) -> Claim:
    """Return what a worker holds of a row that it just claimed."""
    return Claim(
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
        tried=row.claim > 1 and _tried(connection, row),
    )


def _tried(connection: Connection, row: Row[Any]) -> bool:
    earlier = and_(ATTEMPT.c.event == row.id, ATTEMPT.c.claim < row.claim)
    handled = ATTEMPT.c.outcome.is_distinct_from(Move.IGNORE)
    return connection.execute(select(ATTEMPT.c.claim).where(earlier, handled).limit(1)).first() is not None


EXPIRE_BATCH = 1000


def claim(store: Store, event: UUID, *, lease: timedelta, worker: str) -> Claim | None:
    """Claim one event if it is due, or if its lease has run out; None when it is not to be had."""
    with store.write() as connection:
        rows = _claim(store, connection, event, lease)
        if not rows and _expire(store, connection, EVENT.c.id == event):
            rows = _claim(store, connection, event, lease)
        return next(iter(_begin(store, connection, rows, worker)), None)


def claim_next(store: Store, pick: ColumnElement[bool], *, lease: timedelta, worker: str) -> Claim | None:
    """Claim the due event that has waited longest among those that `pick` allows."""
    return next(iter(claim_several(store, pick, limit=1, lease=lease, worker=worker)), None)


def claim_several(
    store: Store, pick: ColumnElement[bool], *, limit: int, lease: timedelta, worker: str
) -> list[Claim]:
    """Claim up to `limit` due events that `pick` allows, those that have waited longest."""
    with store.write() as connection:
        due = select(EVENT.c.id).where(_due(store), pick).order_by(EVENT.c.due_at).limit(limit)
        # A CTE is evaluated once; as a plain subquery, PostgreSQL may run it again for each row.
        chosen = due.with_for_update(skip_locked=True).cte("chosen")
        taking = claiming(store, EVENT.c.id.in_(select(chosen.c.id)), _due_by_clock(store))
        rows = connection.execute(taking, terms(store, lease)).all()
        return _begin(store, connection, rows, worker)


def claim_due(store: Store, *, limit: int, lease: timedelta, worker: str) -> list[Claim]:
    """Claim up to `limit` due events, those that have waited longest."""
    with store.write() as connection:
        rows = connection.execute(store.built(_claim_oldest), {"limit": limit} | terms(store, lease)).all()
        return _begin(store, connection, rows, worker)


def renew(store: Store, claims: Iterable[Claim], *, lease: timedelta) -> set[UUID]:
    """Extend the leases that are still held; return the events whose claims were lost."""
    lost = set()
    with store.write() as connection:
        # In the order in which `record` takes its rows, else the two deadlock on PostgreSQL.
        for held in sorted(claims, key=lambda item: (item.source, item.event_id)):
            changed = connection.execute(
                update(EVENT).where(*claim_guard(held)).values(lease_until=_extended(store, lease))
            ).rowcount
            if not changed:
                lost.add(held.event)
    return lost


def _extended(store: Store, lease: timedelta) -> ColumnElement[Any]:
    """Return the later of both ends: a call on its way may have been given more than a lease."""
    new = store.after(lease)
    return case((EVENT.c.lease_until > new, EVENT.c.lease_until), else_=new)


def expire(store: Store) -> int:
    """Take expired leases back, each counted as a crash; at the fifth the event parks. Returns how many."""
    with store.write() as connection:
        return _expire(store, connection, true())


def due(store: Store) -> ColumnElement[bool]:
    """Return the condition under which an event may be claimed now."""
    return _due(store)


def _due(store: Store) -> ColumnElement[bool]:
    return and_(in_state(store, *UNFINISHED), EVENT.c.due_at <= store.now())


def _due_by_clock(store: Store) -> ColumnElement[bool]:
    return and_(in_state(store, *UNFINISHED), EVENT.c.due_at <= store.clock)


def _claim(store: Store, connection: Connection, event: UUID, lease: timedelta) -> Sequence[Row[Any]]:
    return connection.execute(store.built(_claim_one), {"event_": event} | terms(store, lease)).all()


def _claim_one(store: Store) -> ReturningUpdate[Any]:
    return claiming(store, EVENT.c.id == bindparam("event_", type_=Uuid()), _due_by_clock(store))


def _claim_oldest(store: Store) -> ReturningUpdate[Any]:
    oldest = select(EVENT.c.id).where(_due_by_clock(store)).order_by(EVENT.c.due_at)
    chosen = oldest.limit(bindparam("limit", type_=Integer())).with_for_update(skip_locked=True).cte("chosen")
    return claiming(store, EVENT.c.id.in_(select(chosen.c.id)), _due_by_clock(store))


def _begin(store: Store, connection: Connection, rows: Sequence[Row[Any]], worker: str) -> list[Claim]:
    if not rows:
        return []
    begun = {"ids": [row.id for row in rows], "worker_": clipped(worker)}
    connection.execute(store.built(beginning), begun | store.moment())
    ordered = sorted(rows, key=lambda row: row.due_at)
    return [claimed(connection, row) for row in ordered]


def _expire(store: Store, connection: Connection, which: ColumnElement[bool]) -> int:
    gone = (
        select(EVENT.c.id)
        .where(EVENT.c.state.in_(leaves(Move.EXPIRE)), EVENT.c.lease_until <= store.now(), which)
        .order_by(EVENT.c.lease_until)
        .limit(EXPIRE_BATCH)
        .with_for_update(skip_locked=True)
        .cte("gone")
    )
    last = EVENT.c.crashes + 1 >= CRASH_LIMIT
    story = f"Crash loop: {CRASH_LIMIT} workers vanished while they held it. Retry it once that is mended."
    change = {
        "state": case((last, enters(Move.PARK)), else_=enters(Move.EXPIRE)),
        "crashes": EVENT.c.crashes + 1,
        "lease_until": None,
        "due_at": store.now(),
        "nudged_at": None,
        "nudges": 0,
        "reason": case((last, story), else_="The worker that held it vanished; its lease ran out."),
    }
    columns = EVENT.c.id, EVENT.c.source, EVENT.c.type, EVENT.c.state
    taken = update(EVENT).where(EVENT.c.id.in_(select(gone.c.id))).values(**change).returning(*columns)
    rows = connection.execute(taken).all()
    events = [row.id for row in rows]
    if events:
        end = {"ended_at": store.now(), "outcome": Move.EXPIRE}
        open_ = (ATTEMPT.c.event.in_(events), ATTEMPT.c.ended_at.is_(None))
        connection.execute(update(ATTEMPT).where(*open_).values(**end))
        told = [(CounterKind.ATTEMPT, row.source, str(Move.EXPIRE)) for row in rows]
        parked = [(CounterKind.PARKED, row.source, row.type) for row in rows if row.state == State.PARKED]
        bump(store, connection, Counter(told + parked))
    return len(events)
