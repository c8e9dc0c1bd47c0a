"""Totals that only grow: bumped in the transaction that does what they count, read in one small query."""

import os
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, Insert, delete, func, literal, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import UTCDateTime

from receiver.ledger.store import Store
from receiver.ledger.tables import DUPLICATE_MINUTE, REJECTION, SAMPLE, TALLY
from receiver.ledger.text import clipped, uuid7

SLOTS = 16
"""Rows of one total on PostgreSQL, one for each of so many threads: on a single row, all deliveries of a
source would wait for each other's commits."""


class CounterKind(StrEnum):
    """What is counted, and by which two names."""

    DELIVERY = "delivery"
    """By source and verdict."""
    ATTEMPT = "attempt"
    """By source and outcome."""
    CALL = "call"
    """What came back to each send, by API and outcome."""
    REJECTION = "rejection"
    """By source and reason."""
    SWEEP = "sweep"
    """What sweepers did; the first name is empty."""
    DEAD = "dead"
    """Events that died, by source and type; a person's discard is none."""
    PARKED = "parked"
    """Events that were parked, by source and type."""


@dataclass(frozen=True)
class Total:
    """How often something happened since this ledger counts."""

    kind: CounterKind
    name: str
    what: str
    count: int


Counts = Mapping[tuple[CounterKind, str, str], int]


def bump(store: Store, connection: Connection, counts: Counts) -> None:
    """Add to totals, in the caller's transaction and last in it: others may wait for the rows."""
    rows = [
        {
            "kind": kind,
            "name": clipped(name),
            "what": clipped(what),
            "slot": slot_of(store),
            "count": counts[key],
        }
        for key in sorted(counts)
        for kind, name, what in [key]
        if counts[key]
    ]
    if not rows:
        return
    # In one order everywhere, so that two transactions that share a slot cannot deadlock.
    connection.execute(_ADD_SQLITE if store.sqlite else _ADD_POSTGRES, rows)


def _add(insert: Any) -> Insert:
    """Return the statement, built once: it stands in every delivery's transaction."""
    more = {"count": TALLY.c.count + insert.excluded["count"]}
    statement: Insert = insert.on_conflict_do_update(index_elements=list(TALLY.primary_key), set_=more)
    return statement


_ADD_SQLITE, _ADD_POSTGRES = _add(sqlite.insert(TALLY)), _add(postgresql.insert(TALLY))


def count_sweep(store: Store, done: Mapping[str, int]) -> None:
    """Add what a sweeper did; nothing is written when it did nothing."""
    counts = {
        (CounterKind.SWEEP, "", what.replace("_", " ")): count for what, count in done.items() if count > 0
    }
    if counts:
        with store.write() as connection:
            bump(store, connection, counts)


def totals(connection: Connection, *kinds: CounterKind) -> list[Total]:
    """Return every total, or those of some kinds."""
    names = TALLY.c.kind, TALLY.c.name, TALLY.c.what
    chosen = select(*names, func.sum(TALLY.c.count)).group_by(*names).order_by(*names)
    if kinds:
        chosen = chosen.where(TALLY.c.kind.in_(kinds))
    return [
        Total(CounterKind(kind), name, what, int(count))
        for kind, name, what, count in connection.execute(chosen)
    ]


def slot_of(store: Store) -> int:
    """Return which of a total's rows this thread adds to."""
    return 0 if store.sqlite else hash((os.getpid(), threading.get_ident())) % SLOTS


# How much happens in each minute: accepted, duplicates and done. It reads the window's rows alone.


KEPT = timedelta(days=2)
"""How long minutes of duplicates are kept: twice what is drawn."""


@dataclass(frozen=True)
class Again:
    """One duplicate of a source; the ledger sets the time when it is counted."""

    source: str


def count_duplicates(store: Store, batch: Sequence[Again]) -> None:
    """Count a batch of duplicates in the present minute, in one transaction; LedgerUnavailable: none stands.

    The event's own count is exact and part of the answer. This one is for the chart, off the answer's path:
    one row for all duplicates of a minute would make deliveries wait for each other.
    """
    counted = Counter(again.source for again in batch)
    insert = (sqlite if store.sqlite else postgresql).insert(DUPLICATE_MINUTE)
    more = {"count": DUPLICATE_MINUTE.c.count + insert.excluded["count"]}
    with store.write() as connection:
        minute = connection.execute(select(store.now())).scalar_one().replace(second=0, microsecond=0)
        # In one order everywhere: two processes that count the same sources must not deadlock.
        rows = [{"minute": minute, "source": name, "count": counted[name]} for name in sorted(counted)]
        added = insert.on_conflict_do_update(index_elements=["minute", "source"], set_=more)
        connection.execute(added, rows)
        connection.execute(delete(DUPLICATE_MINUTE).where(DUPLICATE_MINUTE.c.minute < minute - KEPT))


# What was refused at the door: counts by source, reason and minute, and the last 100 without bodies.


SAMPLES_KEPT = 100
"""Of each source: enough to see who knocks, too few to fill a disk with."""

REASON_MAX = 64


@dataclass(frozen=True)
class Rejected:
    """One delivery that was refused; the ledger sets the time when it is recorded."""

    source: str
    reason: str
    address: str | None = None


def record_rejections(store: Store, batch: Sequence[Rejected]) -> None:
    """Count a batch and remember its samples, in one transaction; LedgerUnavailable: none stands."""
    if not batch:
        return
    with store.write() as connection:
        _count(store, connection, batch)
        _remember(store, connection, batch)
        told = ((CounterKind.REJECTION, refused.source, refused.reason[:REASON_MAX]) for refused in batch)
        bump(store, connection, Counter(told))


def _count(store: Store, connection: Connection, batch: Iterable[Rejected]) -> None:
    counted = Counter((refused.source, refused.reason[:REASON_MAX]) for refused in batch)
    # In one order everywhere: two processes that count the same reasons must not deadlock.
    rows = [{"source": key[0], "reason": key[1], "count": counted[key]} for key in sorted(counted)]
    insert = (sqlite if store.sqlite else postgresql).insert(REJECTION)
    connection.execute(
        insert.values(minute=_minute(store)).on_conflict_do_update(
            index_elements=["source", "reason", "minute"],
            set_={"count": REJECTION.c.count + insert.excluded["count"]},
        ),
        rows,
    )


def _remember(store: Store, connection: Connection, batch: Sequence[Rejected]) -> None:
    latest = batch[-SAMPLES_KEPT * len({refused.source for refused in batch}) :]
    rows = [
        {
            "id": uuid7(),
            "source": refused.source,
            "reason": refused.reason[:REASON_MAX],
            "address": clipped(refused.address),
        }
        for refused in latest
    ]
    connection.execute(SAMPLE.insert().values(at=store.now()), rows)
    for source in sorted({refused.source for refused in batch}):
        mine = SAMPLE.c.source == source
        newest = select(SAMPLE.c.id).where(mine).order_by(SAMPLE.c.id.desc())
        oldest_kept = newest.offset(SAMPLES_KEPT - 1).limit(1).scalar_subquery()
        connection.execute(delete(SAMPLE).where(mine, SAMPLE.c.id < oldest_kept))


def _minute(store: Store) -> ColumnElement[datetime]:
    if store.sqlite:
        now = datetime.now(UTC) + store.shift
        return literal(now.replace(second=0, microsecond=0), UTCDateTime())
    minute: ColumnElement[datetime] = func.date_trunc("minute", store.now(), "UTC", type_=UTCDateTime())
    return minute
