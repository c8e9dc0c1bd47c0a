"""What the sweeper asks of the ledger: what to nudge, what nobody fetched, what to prune."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    delete,
    exists,
    func,
    literal_column,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from receiver.ledger.counters import CounterKind, forget_minutes
from receiver.ledger.queue.claims import due
from receiver.ledger.states import REOPEN_WINDOW, UNFINISHED, Move, State, enters, leaves
from receiver.ledger.store import Store
from receiver.ledger.tables import (
    ATTEMPT,
    CALL,
    CONFLICT,
    DUPLICATE,
    EVENT,
    VALUE,
    WORKER,
    in_state,
)
from receiver.ledger.text import clipped

# Which workers live: each one says so at every sweep, and is forgotten an hour after its last word.


FORGOTTEN_AFTER = timedelta(hours=1)


def note_worker(store: Store, name: str) -> None:
    """Write down that a worker is here now."""
    insert = (sqlite if store.sqlite else postgresql).insert(WORKER)
    here = insert.values(name=clipped(name), started_at=store.now(), seen_at=store.now())
    with store.write() as connection:
        seen = {"seen_at": insert.excluded.seen_at}
        connection.execute(here.on_conflict_do_update(index_elements=["name"], set_=seen))
        connection.execute(delete(WORKER).where(WORKER.c.seen_at < store.after(-FORGOTTEN_AFTER)))


def forget_worker(store: Store, name: str) -> None:
    """Write down that a worker has stopped in order."""
    with store.write() as connection:
        connection.execute(delete(WORKER).where(WORKER.c.name == clipped(name)))


# What a person says of a call that nobody else can decide about.


def erase_contents(connection: Connection, events: Collection[UUID]) -> None:
    """Erase what calls of these events sent and got, and what was computed for them; the facts stay."""
    gone = {"headers": "{}", "body": None, "answer": None, "answer_headers": None}
    connection.execute(update(CALL).where(CALL.c.event.in_(events)).values(**gone))
    connection.execute(delete(VALUE).where(VALUE.c.event.in_(events)))


NUDGES_OPEN = 1000
"""Events nudged and not yet claimed at any time: a dead consumer must not fill the broker."""

NUDGES_BEFORE_SELF = 2
"""Nudges after which a worker runs the event itself: nobody listens to the broker."""

BACKOFF_SWEEPS, BACKOFF_SWEEPS_MAX = 6, 120
"""In sweeps: 30 s, doubling to 10 min, with the default sweep of 5 s."""

NUDGE_LOCK = 0x6E75646765
"""An advisory lock's number: two sweepers that counted at once would each fill the broker to its cap."""

PRUNE_BATCH = 1000

PRUNE_BATCHES = 50
"""Batches of one kind in one pass: ids must go faster than they come, and a pass must end."""

REOPEN_BATCH = 1000


@dataclass(frozen=True)
class Retention:
    """How long a source keeps ids, and how long payloads."""

    retention: timedelta
    payload_retention: timedelta


def take_nudges(store: Store, sweep: timedelta, *, limit: int = NUDGES_OPEN) -> list[UUID]:
    """Mark and return the due events to nudge now; each waits longer for its next nudge.

    At most `limit` of those never nudged, and as many again: a woken thread goes on to the rest by itself.
    """
    with store.write() as connection:
        if not store.sqlite and not _first_here(connection):
            return []
        open_ = select(func.count()).select_from(EVENT)
        waiting = connection.execute(open_.where(in_state(store, *UNFINISHED), _nudged(store))).scalar_one()
        old = select(EVENT.c.id).where(_nudge_again(store, sweep))
        again = _mark(store, connection, old.order_by(EVENT.c.nudged_at).limit(min(limit, NUDGES_OPEN)))
        new = select(EVENT.c.id).where(_never_nudged(store, sweep))
        room = min(limit, max(0, NUDGES_OPEN - waiting))
        return again + _mark(store, connection, new.order_by(EVENT.c.due_at).limit(room))


def _first_here(connection: Connection) -> bool:
    lock = text("SELECT pg_try_advisory_xact_lock(:lock)")
    return bool(connection.execute(lock, {"lock": NUDGE_LOCK}).scalar_one())


def starved(store: Store, sweep: timedelta) -> bool:
    """Say whether some due event was nudged twice and nobody came."""
    unheard = and_(
        due(store), _nudged(store), EVENT.c.nudges >= NUDGES_BEFORE_SELF, _quiet_since(store, sweep)
    )
    query = select(EVENT.c.id).where(unheard).limit(1)
    with store.read() as connection:
        return connection.execute(query).first() is not None


def unattended(store: Store, sweep: timedelta) -> ColumnElement[bool]:
    """Return the condition for due events that no fresh nudge is under way for."""
    return _quiet_since(store, sweep)


def _quiet_since(store: Store, sweep: timedelta) -> ColumnElement[bool]:
    fresh = and_(
        EVENT.c.nudges == 0, or_(EVENT.c.state == State.WAITING, EVENT.c.due_at <= store.after(-sweep))
    )
    return or_(fresh, EVENT.c.nudged_at <= store.after(-sweep * BACKOFF_SWEEPS))


def _nudged(store: Store) -> ColumnElement[bool]:
    # As the partial index has it: the number written out, and a range of its column to search.
    return and_(EVENT.c.nudges > literal_column("0"), EVENT.c.nudged_at <= store.now())


def _never_nudged(store: Store, sweep: timedelta) -> ColumnElement[bool]:
    # The web process nudges what it has just recorded, so a new row is left alone for one sweep.
    old = or_(EVENT.c.state == State.WAITING, EVENT.c.due_at <= store.after(-sweep))
    return and_(due(store), EVENT.c.nudges == 0, old)


def _nudge_again(store: Store, sweep: timedelta) -> ColumnElement[bool]:
    steps = [
        and_(EVENT.c.nudges == count, EVENT.c.nudged_at <= store.after(-sweep * sweeps))
        for count, sweeps in enumerate(_ladder(), start=1)
    ]
    longest = and_(EVENT.c.nudges > len(steps), EVENT.c.nudged_at <= store.after(-sweep * BACKOFF_SWEEPS_MAX))
    return and_(due(store), _nudged(store), or_(*steps, longest))


def _ladder() -> list[int]:
    steps = [BACKOFF_SWEEPS]
    while steps[-1] * 2 < BACKOFF_SWEEPS_MAX:
        steps.append(steps[-1] * 2)
    return steps


def _mark(store: Store, connection: Connection, rows: Select[Any]) -> list[UUID]:
    change = {"nudged_at": store.now(), "nudges": EVENT.c.nudges + 1}
    chosen = _among(rows.with_for_update(skip_locked=True))
    statement = update(EVENT).where(chosen).values(**change).returning(EVENT.c.id)
    return list(connection.execute(statement).scalars())


def _among(rows: Select[Any]) -> ColumnElement[bool]:
    # A CTE is evaluated once; as a plain subquery, PostgreSQL may run it again for each row, past its limit.
    return EVENT.c.id.in_(select(rows.cte("chosen").c.id))


def ignored_types(store: Store) -> list[tuple[str, str]]:
    """Return (source, type) of what was ignored in the last 24 hours."""
    recent = EVENT.c.finished_at >= store.after(-REOPEN_WINDOW)
    query = select(EVENT.c.source, EVENT.c.type)
    with store.read() as connection:
        rows = connection.execute(query.where(in_state(store, State.IGNORED), recent).distinct())
        return [(row.source, row.type) for row in rows]


def reopen(store: Store, source: str, event_type: str) -> int:
    """Reopen what was ignored in the last 24 hours, now that there is a handler; returns how many."""
    total = 0
    while True:
        changed = _reopen_batch(store, source, event_type)
        total += changed
        if changed < REOPEN_BATCH:
            return total


def _reopen_batch(store: Store, source: str, event_type: str) -> int:
    which = (
        EVENT.c.source == source,
        EVENT.c.type == event_type,
        in_state(store, *leaves(Move.REOPEN)),
        EVENT.c.finished_at >= store.after(-REOPEN_WINDOW),
        EVENT.c.body.is_not(None),
    )
    # Rows in the order in which `record` takes them, else the two deadlock on PostgreSQL.
    key = EVENT.c.event_id if store.sqlite else EVENT.c.event_id.collate("C")
    chosen = select(EVENT.c.id).where(*which).order_by(key).limit(REOPEN_BATCH).with_for_update()
    change = {"state": enters(Move.REOPEN), "due_at": store.now(), "finished_at": None, "reason": None}
    with store.write() as connection:
        statement = update(EVENT).where(_among(chosen)).values(**change).returning(EVENT.c.id)
        # Counted by its rows: SQLite's driver says -1 of a statement that begins with a CTE.
        return len(connection.execute(statement).all())


def prune(store: Store, windows: Mapping[str, Retention]) -> dict[str, int]:
    """Erase payloads and delete ids that are past their source's windows, in short transactions.

    What is unfinished or parked is never touched. Returns counts by kind.
    """
    counts = {"payloads": 0, "ids": 0, "rejections": 0}
    for source, window in windows.items():
        counts["payloads"] += _in_batches(_erase_payloads, store, source, window.payload_retention)
        counts["ids"] += _in_batches(_delete_ids, store, source, window.retention)
    with store.write() as connection:
        counts["rejections"] = forget_minutes(store, connection)[CounterKind.REJECTION]
    return counts


def _in_batches(
    job: Callable[[Store, str, timedelta], int], store: Store, source: str, age: timedelta
) -> int:
    total = 0
    for _ in range(PRUNE_BATCHES):
        changed = job(store, source, age)
        total += changed
        if changed < PRUNE_BATCH:
            break
    return total


def _ended_before(store: Store, source: str, age: timedelta) -> ColumnElement[bool]:
    ended = EVENT.c.state.in_((State.DONE, State.DEAD, State.IGNORED))
    return and_(EVENT.c.source == source, ended, EVENT.c.finished_at < store.after(-age))


def _oldest(which: ColumnElement[bool]) -> Select[Any]:
    rows = select(EVENT.c.id).where(which).order_by(EVENT.c.finished_at).limit(PRUNE_BATCH)
    return rows.with_for_update(skip_locked=True)


def _erase_payloads(store: Store, source: str, age: timedelta) -> int:
    which = and_(_ended_before(store, source, age), EVENT.c.body.is_not(None))
    chosen = _oldest(which)
    with store.write() as connection:
        change = {"body": None, "headers": None, "address": None}
        statement = update(EVENT).where(_among(chosen)).values(**change).returning(EVENT.c.id)
        events = connection.execute(statement).scalars().all()
        theirs = or_(CONFLICT.c.event.in_(events), _late(store, source, age))
        connection.execute(delete(CONFLICT).where(theirs))
        connection.execute(update(DUPLICATE).where(DUPLICATE.c.event.in_(events)).values(address=None))
        # A traceback quotes what the handler had in its hands.
        connection.execute(update(ATTEMPT).where(ATTEMPT.c.event.in_(events)).values(error=None))
        erase_contents(connection, events)
    return len(events)


def _late(store: Store, source: str, age: timedelta) -> ColumnElement[bool]:
    """Return the condition for other bodies that came after their event's own payload was erased."""
    erased = exists().where(EVENT.c.id == CONFLICT.c.event, EVENT.c.source == source, EVENT.c.body.is_(None))
    return and_(CONFLICT.c.at < store.after(-age), erased)


def _delete_ids(store: Store, source: str, age: timedelta) -> int:
    which = and_(_ended_before(store, source, age), EVENT.c.received_at < store.after(-age))
    # The newest duplicate counts: while a provider still sends an id, its tombstone stands.
    quiet = or_(EVENT.c.last_duplicate_at.is_(None), EVENT.c.last_duplicate_at < store.after(-age))
    chosen = _oldest(and_(which, quiet))
    with store.write() as connection:
        return len(connection.execute(delete(EVENT).where(_among(chosen)).returning(EVENT.c.id)).all())
