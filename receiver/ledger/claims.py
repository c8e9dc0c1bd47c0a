"""The claim protocol: a lease, a fencing token, and guarded UPDATEs. Zero rows is a normal outcome."""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    Row,
    Uuid,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    select,
    true,
    update,
)
from sqlalchemy.sql.dml import ReturningUpdate

from receiver.ledger.calls.settling import none_unfinished, outcome_given_calls, replace_rejected
from receiver.ledger.claimed import Claim, Outcome, claim_guard
from receiver.ledger.claiming import beginning, claimed, claiming, terms
from receiver.ledger.errors import NotAllowed
from receiver.ledger.models import ATTEMPT, EVENT
from receiver.ledger.states import UNFINISHED, Move, State, enters, leaves
from receiver.ledger.store import Store
from receiver.ledger.telemetry.tally import CounterKind, bump
from receiver.ledger.texts import clipped, plain

CRASH_LIMIT = 5
"""Expired leases after which an event waits for a person: something in it kills workers."""

EXPIRE_BATCH = 1000
UNCOUNTED = (Move.RELEASE, Move.IGNORE, Move.CALL_LATER)
"""Ends that give the attempt back."""

STUCK = {Move.PARK: CounterKind.PARKED, Move.GIVE_UP: CounterKind.DEAD}
"""Ends that a person should hear of."""

FINAL = (State.DONE, State.DEAD, State.IGNORED)


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


def settle(store: Store, held: Claim, end: Outcome) -> bool:
    """End an attempt with a move of the table; False when someone else took the event over.

    Its unfinished calls decide before the handler does: with one of them open it is not done, whatever the
    handler returned. Raises NotAllowed for a move that does not start from processing.
    """
    if State.PROCESSING not in leaves(end.move):
        raise NotAllowed(f"{end.move!r} does not end an attempt.")
    with store.write() as connection:
        if end.move == Move.FINISH and _settle(store, connection, held, end, none_unfinished(held)):
            return True
        real = outcome_given_calls(store, connection, held, end)
        return real is not None and _settle(store, connection, held, real, true())


def _settle(
    store: Store, connection: Connection, held: Claim, end: Outcome, guard: ColumnElement[bool]
) -> bool:
    # A traceback quotes what the sender wrote; a text that cannot be stored must not keep the event held.
    reason, error = (None if text is None else plain(text) for text in (end.reason, end.error))
    change = _settlement(store, end) | {"reason": reason}
    if not connection.execute(update(EVENT).where(*claim_guard(held), guard).values(**change)).rowcount:
        return False
    if end.call and end.move == Move.RETRY_LATER:
        replace_rejected(connection, end.call)
    story = {"ended_at": store.now(), "outcome": end.move, "reason": reason, "error": error}
    mine = (ATTEMPT.c.event == held.event, ATTEMPT.c.claim == held.token)
    connection.execute(update(ATTEMPT).where(*mine).values(**story))
    counts = {(CounterKind.ATTEMPT, held.source, str(end.move)): 1}
    if stuck := STUCK.get(end.move):
        counts[stuck, held.source, held.type] = 1
    bump(store, connection, counts)
    return True


def _extended(store: Store, lease: timedelta) -> ColumnElement[Any]:
    """Return the later of both ends: a call on its way may have been given more than a lease."""
    new = store.after(lease)
    return case((EVENT.c.lease_until > new, EVENT.c.lease_until), else_=new)


def _settlement(store: Store, end: Outcome) -> dict[str, Any]:
    state = enters(end.move)
    change: dict[str, Any] = {"state": state, "lease_until": None, "nudged_at": None, "nudges": 0}
    if state == State.WAITING:
        change["due_at"] = store.after(end.delay)
    if state in FINAL:
        change["finished_at"] = store.now()
    if end.move == Move.PARK:
        change["parked_call"] = end.call
    if end.move in UNCOUNTED:
        change["attempts"] = EVENT.c.attempts - 1
    return change


def expire(store: Store) -> int:
    """Take expired leases back, each counted as a crash; at the fifth the event parks. Returns how many."""
    with store.write() as connection:
        return _expire(store, connection, true())


def due(store: Store) -> ColumnElement[bool]:
    """Return the condition under which an event may be claimed now."""
    return _due(store)


def in_state(store: Store, *states: State) -> ColumnElement[Any]:
    """Return a condition on states of many rows that the partial indexes serve on both databases.

    SQLite does not match a partial index with parameters, nor `=` with `IN`, and takes any state for rare
    unless it is told.
    """
    named: list[ColumnElement[Any]] = [literal_column(f"'{state}'") for state in states]
    found = EVENT.c.state.in_(named) if len(named) > 1 else EVENT.c.state == named[0]
    return func.likelihood(found, literal_column("0.9")) if store.sqlite else found


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
