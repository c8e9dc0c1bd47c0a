"""The sweeper's queries: which events to nudge, to reopen and to prune, and which workers live.

A nudge is a broker message that says that an event is due. It may be lost, so due events are nudged again,
each time later; when two nudges of an event went unheard, a worker runs it without the broker.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from receiver.ledger import tables
from receiver.ledger.counters import CounterKind, forget_minutes
from receiver.ledger.queue.claims import is_due
from receiver.ledger.states import REOPEN_WINDOW, UNFINISHED, Move, State, enters, leaves
from receiver.ledger.store import LONG, Store
from receiver.ledger.text import clipped

# Events nudged and not yet claimed at any time: a dead consumer must not fill the broker.
NUDGES_OPEN = 1000

# Nudges after which a worker runs the event itself: no consumer listens to the broker.
NUDGES_BEFORE_SELF = 2

# In sweeps, between an event's nudges: 30 s, doubling to 10 min, with the default sweep of 5 s.
NUDGE_PAUSES, NUDGE_PAUSE_MAX = (6, 12, 24, 48, 96), 120

# An advisory lock's number: two sweepers that counted at once would each fill the broker to its cap.
NUDGE_LOCK = 0x6E75646765

# Events reopened in one transaction: short enough to let deliveries through on SQLite.
REOPEN_BATCH = 1000

# Events pruned in one transaction, for the same reason.
PRUNE_BATCH = 1000

# Batches of one kind in one pass: ids must go faster than they come, and a pass must end.
PRUNE_BATCHES = 50

# How long after its last heartbeat a worker is still listed.
WORKER_KEPT = timedelta(hours=1)


@dataclass(frozen=True)
class Retention:
    """How long a source keeps ids, and how long payloads."""

    retention: timedelta
    payload_retention: timedelta


def record_heartbeat(store: Store, worker: str) -> None:
    """Write down that a worker is alive, and forget those that have been silent for an hour."""
    insert = tables.insert_for(store, tables.WORKER)
    alive = insert.values(name=clipped(worker), started_at=store.now(), seen_at=store.now())
    with store.write() as connection:
        seen = {"seen_at": insert.excluded.seen_at}
        connection.execute(alive.on_conflict_do_update(index_elements=["name"], set_=seen))
        connection.execute(
            sa.delete(tables.WORKER).where(tables.WORKER.c.seen_at < store.after(-WORKER_KEPT))
        )


def forget_worker(store: Store, worker: str) -> None:
    """Write down that a worker has stopped in order."""
    with store.write() as connection:
        connection.execute(sa.delete(tables.WORKER).where(tables.WORKER.c.name == clipped(worker)))


def take_nudges(store: Store, sweep: timedelta, *, limit: int = NUDGES_OPEN) -> list[UUID]:
    """Mark and return the due events to nudge now; each waits longer for its next nudge.

    At most `limit` of those never nudged, and as many again: a woken thread goes on to the rest by itself.
    """
    nudges, nudged_at = tables.EVENT.c.nudges, tables.EVENT.c.nudged_at
    pauses = [
        sa.and_(nudges == count, nudged_at <= store.after(-sweep * sweeps))
        for count, sweeps in enumerate(NUDGE_PAUSES, start=1)
    ]
    longest = sa.and_(nudges > len(pauses), nudged_at <= store.after(-sweep * NUDGE_PAUSE_MAX))
    due = sa.select(tables.EVENT.c.id).where(is_due(store, store.now()))
    again = due.where(_nudged(store), sa.or_(*pauses, longest)).order_by(nudged_at)
    first = due.where(nudges == 0, _not_just_recorded(store, sweep)).order_by(tables.EVENT.c.due_at)
    with store.write(limit=LONG) as connection:
        if not store.sqlite:
            lock = sa.text("SELECT pg_try_advisory_xact_lock(:lock)")
            if not connection.execute(lock, {"lock": NUDGE_LOCK}).scalar_one():
                return []
        unclaimed = sa.select(sa.func.count()).select_from(tables.EVENT)
        waiting = connection.execute(
            unclaimed.where(tables.in_state(store, *UNFINISHED), _nudged(store))
        ).scalar_one()
        marked = _mark_nudged(store, connection, again.limit(min(limit, NUDGES_OPEN)))
        room = min(limit, max(0, NUDGES_OPEN - waiting))
        return marked + _mark_nudged(store, connection, first.limit(room))


def starved(store: Store, sweep: timedelta) -> bool:
    """Say whether some due event was nudged twice and no worker claimed it."""
    unheard = tables.EVENT.c.nudges >= NUDGES_BEFORE_SELF
    due = sa.and_(is_due(store, store.now()), _nudged(store), unheard, unattended(store, sweep))
    with store.read() as connection:
        return connection.execute(sa.select(tables.EVENT.c.id).where(due).limit(1)).first() is not None


def unattended(store: Store, sweep: timedelta) -> sa.ColumnElement[bool]:
    """Return the condition for due events that no fresh nudge is under way for."""
    fresh = sa.and_(tables.EVENT.c.nudges == 0, _not_just_recorded(store, sweep))
    return sa.or_(fresh, tables.EVENT.c.nudged_at <= store.after(-sweep * NUDGE_PAUSES[0]))


def ignored_types(store: Store) -> list[tuple[str, str]]:
    """Return (source, type) of what was ignored in the last 24 hours."""
    recent = tables.EVENT.c.finished_at >= store.after(-REOPEN_WINDOW)
    query = sa.select(tables.EVENT.c.source, tables.EVENT.c.type)
    with store.read() as connection:
        rows = connection.execute(query.where(tables.in_state(store, State.IGNORED), recent).distinct())
        return [(row.source, row.type) for row in rows]


def reopen(store: Store, source: str, event_type: str) -> int:
    """Reopen what was ignored in the last 24 hours, now that there is a handler; returns how many."""
    # Rows in the order in which `record` locks them, else the two deadlock on PostgreSQL.
    key = tables.EVENT.c.event_id if store.sqlite else tables.EVENT.c.event_id.collate("C")
    total = 0
    while True:
        chosen = (
            sa.select(tables.EVENT.c.id)
            .where(
                tables.EVENT.c.source == source,
                tables.EVENT.c.type == event_type,
                tables.in_state(store, *leaves(Move.REOPEN)),
                tables.EVENT.c.finished_at >= store.after(-REOPEN_WINDOW),
                tables.EVENT.c.body.is_not(None),
            )
            .order_by(key)
            .limit(REOPEN_BATCH)
            .with_for_update()
        )
        change = {"state": enters(Move.REOPEN), "due_at": store.now(), "finished_at": None, "reason": None}
        with store.write(limit=LONG) as connection:
            statement = (
                sa.update(tables.EVENT).where(_among(chosen)).values(**change).returning(tables.EVENT.c.id)
            )
            # Counted by its rows: SQLite's driver says -1 of a statement that begins with a CTE.
            changed = len(connection.execute(statement).all())
        total += changed
        if changed < REOPEN_BATCH:
            return total


def prune(store: Store, windows: Mapping[str, Retention]) -> dict[str, int]:
    """Erase payloads and delete ids that are past their source's windows, in short transactions.

    What is unfinished or parked is never touched. Returns counts by kind.
    """
    counts = {"payloads": 0, "ids": 0, "rejections": 0}
    for source, window in windows.items():
        counts["payloads"] += _in_batches(_erase_payloads, store, source, window.payload_retention)
        counts["ids"] += _in_batches(_delete_ids, store, source, window.retention)
    with store.write(limit=LONG) as connection:
        counts["rejections"] = forget_minutes(store, connection)[CounterKind.REJECTION]
    return counts


def erase_contents(connection: sa.Connection, events: Collection[UUID]) -> None:
    """Erase what calls of these events sent and got, and what was computed for them; the facts stay."""
    gone = {"headers": "{}", "body": None, "answer": None, "answer_headers": None}
    connection.execute(sa.update(tables.CALL).where(tables.CALL.c.event.in_(events)).values(**gone))
    connection.execute(sa.delete(tables.VALUE).where(tables.VALUE.c.event.in_(events)))


def _nudged(store: Store) -> sa.ColumnElement[bool]:
    # As the partial index has it: the number written out, and a range of its column to search.
    return sa.and_(tables.EVENT.c.nudges > sa.literal_column("0"), tables.EVENT.c.nudged_at <= store.now())


def _not_just_recorded(store: Store, sweep: timedelta) -> sa.ColumnElement[bool]:
    # The web process nudges what it has just recorded, so a new row is left alone for one sweep.
    return sa.or_(tables.EVENT.c.state == State.WAITING, tables.EVENT.c.due_at <= store.after(-sweep))


def _mark_nudged(store: Store, connection: sa.Connection, rows: sa.Select[Any]) -> list[UUID]:
    change = {"nudged_at": store.now(), "nudges": tables.EVENT.c.nudges + 1}
    chosen = _among(rows.with_for_update(skip_locked=True))
    statement = sa.update(tables.EVENT).where(chosen).values(**change).returning(tables.EVENT.c.id)
    return list(connection.execute(statement).scalars())


def _among(rows: sa.Select[Any]) -> sa.ColumnElement[bool]:
    # A CTE is evaluated once; as a plain subquery, PostgreSQL may run it again for each row, past its limit.
    return tables.EVENT.c.id.in_(sa.select(rows.cte("chosen").c.id))


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


def _erase_payloads(store: Store, source: str, age: timedelta) -> int:
    chosen = _oldest_ended(store, source, age, tables.EVENT.c.body.is_not(None))
    with store.write(limit=LONG) as connection:
        change = {"body": None, "headers": None, "address": None}
        statement = (
            sa.update(tables.EVENT).where(_among(chosen)).values(**change).returning(tables.EVENT.c.id)
        )
        events = connection.execute(statement).scalars().all()
        # Also other bodies that came after their event's own payload had been erased.
        erased = sa.exists().where(
            tables.EVENT.c.id == tables.CONFLICT.c.event,
            tables.EVENT.c.source == source,
            tables.EVENT.c.body.is_(None),
        )
        late = sa.and_(tables.CONFLICT.c.at < store.after(-age), erased)
        connection.execute(
            sa.delete(tables.CONFLICT).where(sa.or_(tables.CONFLICT.c.event.in_(events), late))
        )
        connection.execute(
            sa.update(tables.DUPLICATE).where(tables.DUPLICATE.c.event.in_(events)).values(address=None)
        )
        # A traceback quotes what the handler had in its hands.
        connection.execute(
            sa.update(tables.ATTEMPT).where(tables.ATTEMPT.c.event.in_(events)).values(error=None)
        )
        erase_contents(connection, events)
    return len(events)


def _delete_ids(store: Store, source: str, age: timedelta) -> int:
    before = store.after(-age)
    # The newest duplicate counts: while a provider still sends an id, its tombstone stands.
    quiet = sa.or_(tables.EVENT.c.last_duplicate_at.is_(None), tables.EVENT.c.last_duplicate_at < before)
    chosen = _oldest_ended(store, source, age, sa.and_(tables.EVENT.c.received_at < before, quiet))
    with store.write(limit=LONG) as connection:
        return len(
            connection.execute(
                sa.delete(tables.EVENT).where(_among(chosen)).returning(tables.EVENT.c.id)
            ).all()
        )


def _oldest_ended(store: Store, source: str, age: timedelta, which: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """Return a source's events that ended longest ago, one batch of those that are past their window."""
    ended = tables.EVENT.c.state.in_((State.DONE, State.DEAD, State.IGNORED))
    old = sa.and_(tables.EVENT.c.source == source, ended, tables.EVENT.c.finished_at < store.after(-age))
    rows = (
        sa.select(tables.EVENT.c.id).where(old, which).order_by(tables.EVENT.c.finished_at).limit(PRUNE_BATCH)
    )
    return rows.with_for_update(skip_locked=True)
