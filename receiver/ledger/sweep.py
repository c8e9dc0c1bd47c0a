"""What the sweeper asks of the ledger: what to nudge, what nobody fetched, what to prune."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, and_, delete, func, or_, select, update

from receiver.ledger.claims import due
from receiver.ledger.models import CONFLICT, DUPLICATE, EVENT, REJECTION
from receiver.ledger.states import UNFINISHED, Move, State, enters, leaves
from receiver.ledger.store import Store

NUDGES_OPEN = 1000
"""Events nudged and not yet claimed at any time: a dead consumer must not fill the broker."""

NUDGES_BEFORE_SELF = 2
"""Nudges after which a worker runs the event itself: nobody listens to the broker."""

BACKOFF_SWEEPS, BACKOFF_SWEEPS_MAX = 6, 120
"""In sweeps: 30 s, doubling to 10 min, with the default sweep of 5 s."""

PRUNE_BATCH = 1000
REJECTIONS_KEPT = timedelta(days=30)
REOPEN_WINDOW = timedelta(hours=24)


@dataclass(frozen=True)
class Windows:
    """How long a source keeps ids, and how long payloads."""

    retention: timedelta
    payload_retention: timedelta


def take_nudges(store: Store, sweep: timedelta) -> list[UUID]:
    """Mark and return the due events to nudge now; each waits longer for its next nudge."""
    with store.write() as connection:
        waiting = connection.execute(
            select(func.count()).select_from(EVENT).where(EVENT.c.state.in_(UNFINISHED), EVENT.c.nudges > 0)
        ).scalar_one()
        stale = _stale(store, sweep)
        again = _mark(store, connection, and_(stale, EVENT.c.nudges > 0), NUDGES_OPEN)
        room = max(0, NUDGES_OPEN - waiting)
        return again + (_mark(store, connection, and_(stale, EVENT.c.nudges == 0), room) if room else [])


def starved(store: Store, sweep: timedelta) -> bool:
    """Say whether some due event was nudged twice and nobody came."""
    unheard = and_(due(store), EVENT.c.nudges >= NUDGES_BEFORE_SELF, _quiet_since(store, sweep))
    with store.read() as connection:
        return connection.execute(select(EVENT.c.id).where(unheard).limit(1)).first() is not None


def unattended(store: Store, sweep: timedelta) -> ColumnElement[bool]:
    """Return the condition for due events that no fresh nudge is under way for."""
    return _quiet_since(store, sweep)


def _quiet_since(store: Store, sweep: timedelta) -> ColumnElement[bool]:
    fresh = and_(
        EVENT.c.nudges == 0, or_(EVENT.c.state == State.WAITING, EVENT.c.due_at <= store.after(-sweep))
    )
    return or_(fresh, EVENT.c.nudged_at <= store.after(-sweep * BACKOFF_SWEEPS))


def _stale(store: Store, sweep: timedelta) -> ColumnElement[bool]:
    # The web process nudges what it has just recorded, so a new row is left alone for one sweep.
    steps = [
        and_(EVENT.c.nudges == count, EVENT.c.nudged_at <= store.after(-sweep * sweeps))
        for count, sweeps in enumerate(_ladder(), start=1)
    ]
    longest = and_(EVENT.c.nudges > len(steps), EVENT.c.nudged_at <= store.after(-sweep * BACKOFF_SWEEPS_MAX))
    unnudged = and_(
        EVENT.c.nudges == 0, or_(EVENT.c.state == State.WAITING, EVENT.c.due_at <= store.after(-sweep))
    )
    return and_(due(store), or_(unnudged, *steps, longest))


def _ladder() -> list[int]:
    steps = [BACKOFF_SWEEPS]
    while steps[-1] * 2 < BACKOFF_SWEEPS_MAX:
        steps.append(steps[-1] * 2)
    return steps


def _mark(store: Store, connection: Connection, which: ColumnElement[bool], limit: int) -> list[UUID]:
    chosen = (
        select(EVENT.c.id)
        .where(which)
        .order_by(EVENT.c.due_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    change = {"nudged_at": store.now(), "nudges": EVENT.c.nudges + 1}
    statement = update(EVENT).where(EVENT.c.id.in_(chosen)).values(**change).returning(EVENT.c.id)
    return list(connection.execute(statement).scalars())


def ignored_types(store: Store) -> list[tuple[str, str]]:
    """Return (source, type) of what was ignored in the last 24 hours."""
    recent = EVENT.c.finished_at >= store.after(-REOPEN_WINDOW)
    with store.read() as connection:
        rows = connection.execute(
            select(EVENT.c.source, EVENT.c.type).where(EVENT.c.state == State.IGNORED, recent).distinct()
        )
        return [(row.source, row.type) for row in rows]


def reopen(store: Store, source: str, event_type: str) -> int:
    """Reopen what was ignored in the last 24 hours, now that there is a handler; returns how many."""
    which = (
        EVENT.c.source == source,
        EVENT.c.type == event_type,
        EVENT.c.state.in_(leaves(Move.REOPEN)),
        EVENT.c.finished_at >= store.after(-REOPEN_WINDOW),
        EVENT.c.body.is_not(None),
    )
    change = {"state": enters(Move.REOPEN), "due_at": store.now(), "finished_at": None, "reason": None}
    with store.write() as connection:
        return connection.execute(update(EVENT).where(*which).values(**change)).rowcount


def prune(store: Store, windows: Mapping[str, Windows]) -> dict[str, int]:
    """Erase payloads and delete ids that are past their source's windows, at most 1,000 of each at a time.

    What is unfinished or parked is never touched. Returns counts by kind.
    """
    counts = {"payloads": 0, "ids": 0, "rejections": 0}
    for source, window in windows.items():
        counts["payloads"] += _erase_payloads(store, source, window.payload_retention)
        counts["ids"] += _delete_ids(store, source, window.retention)
    with store.write() as connection:
        old = REJECTION.c.minute < store.after(-REJECTIONS_KEPT)
        counts["rejections"] = connection.execute(delete(REJECTION).where(old)).rowcount
    return counts


def _ended_before(store: Store, source: str, age: timedelta) -> ColumnElement[bool]:
    ended = EVENT.c.state.in_((State.DONE, State.DEAD, State.IGNORED))
    return and_(EVENT.c.source == source, ended, EVENT.c.finished_at < store.after(-age))


def _chosen(which: ColumnElement[bool]) -> Any:
    return (
        select(EVENT.c.id)
        .where(which)
        .order_by(EVENT.c.id)
        .limit(PRUNE_BATCH)
        .with_for_update(skip_locked=True)
    )


def _erase_payloads(store: Store, source: str, age: timedelta) -> int:
    which = and_(_ended_before(store, source, age), EVENT.c.body.is_not(None))
    with store.write() as connection:
        change = {"body": None, "headers": None}
        statement = update(EVENT).where(EVENT.c.id.in_(_chosen(which))).values(**change).returning(EVENT.c.id)
        events = connection.execute(statement).scalars().all()
        connection.execute(delete(CONFLICT).where(CONFLICT.c.event.in_(events)))
        connection.execute(update(DUPLICATE).where(DUPLICATE.c.event.in_(events)).values(address=None))
    return len(events)


def _delete_ids(store: Store, source: str, age: timedelta) -> int:
    which = and_(_ended_before(store, source, age), EVENT.c.received_at < store.after(-age))
    with store.write() as connection:
        # The newest duplicate counts: while a provider still sends an id, its tombstone stands.
        quiet = or_(EVENT.c.last_duplicate_at.is_(None), EVENT.c.last_duplicate_at < store.after(-age))
        return connection.execute(delete(EVENT).where(EVENT.c.id.in_(_chosen(and_(which, quiet))))).rowcount
