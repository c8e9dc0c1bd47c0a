"""Counters of the ledger: totals that only grow, and counts by the minute for charts and alerts.

`bump` adds to them in the transaction that does what is counted, so that counts stand or fall with it.
`totals` reads what never goes away; charts and alerts read minutes, and `forget_minutes` deletes old ones. An
event's own count of duplicates, and the latest twenty of them, stand beside the event.
"""

import os
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import (
    Boolean,
    Connection,
    Insert,
    Integer,
    Select,
    bindparam,
    case,
    delete,
    func,
    literal,
    select,
)
from sqlmodel import UTCDateTime

from receiver.ledger.store import MOMENT, Store
from receiver.ledger.tables import COUNTER, SAMPLE, insert_for
from receiver.ledger.text import clipped, uuid7

# Rows of one counter on PostgreSQL, one for each of so many threads: on a single row, all deliveries of a
# source would wait for each other's commits.
SLOTS = 16

# The `minute` of a total: a key's columns cannot be null.
ALL_TIME: Final = datetime(1970, 1, 1, tzinfo=UTC)

# Rejections kept of each source: enough to see who sends them, too few to fill a disk.
SAMPLES_KEPT = 100

# Characters of a rejection's reason.
REASON_MAX = 64


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


# The verdict that is not counted by the minute: event ids begin with their time, so charts count those.
FIRST_SEEN = "first seen"

# Kinds that are also counted by the minute, and for how long those minutes stay; charts span a day.
MINUTES_KEPT: Final = {CounterKind.DELIVERY: timedelta(days=2), CounterKind.REJECTION: timedelta(days=30)}

# By kind and two names.
Counts = Mapping[tuple[CounterKind, str, str], int]


@dataclass(frozen=True)
class Total:
    """How often something happened since this ledger counts."""

    kind: CounterKind
    name: str
    what: str
    count: int


def bump(store: Store, connection: Connection, counts: Counts) -> None:
    """Add to counters, in the caller's transaction and last in it: others may wait for the rows."""
    now = store.moment()
    if store.sqlite:
        now = {"under_way": now["now"].replace(second=0, microsecond=0)}
    rows: list[dict[str, Any]] = []
    # One order everywhere, or two transactions that share a slot would deadlock.
    for kind, name, what in sorted(counts):
        if count := counts[kind, name, what]:
            row = {"kind": kind, "name": clipped(name), "what": clipped(what), "slot": slot_of(store)}
            row |= {"count": count, "total": True} | now
            rows.append(row)
            if kind in MINUTES_KEPT and what != FIRST_SEEN:
                rows.append(row | {"total": False})
    if rows:
        connection.execute(store.built(_add), rows)


def _add(store: Store) -> Insert:
    """Build the upsert of one counter; it stands in nearly every transaction."""
    names = ("kind", "name", "what", "slot", "count")
    row: dict[str, Any] = {name: bindparam(name, type_=COUNTER.c[name].type) for name in names}
    total = bindparam("total", type_=Boolean()), literal(ALL_TIME, UTCDateTime())
    minute: Any = bindparam("under_way", type_=UTCDateTime())
    if not store.sqlite:
        minute = func.date_trunc("minute", MOMENT, "UTC", type_=UTCDateTime())
    row["minute"] = case(total, else_=minute)
    insert = insert_for(store, COUNTER)
    more = {"count": COUNTER.c.count + insert.excluded["count"]}
    return insert.values(**row).on_conflict_do_update(index_elements=list(COUNTER.primary_key), set_=more)


def add_selected(store: Store, rows: Select[Any]) -> Insert:
    """Build the upsert of the totals that a SELECT yields, as part of a larger statement of PostgreSQL.

    Its columns are kind, name, what and count; no kind is counted by the minute. `slot_of` has `:slot`.
    """
    found = rows.subquery()
    minute, slot = literal(ALL_TIME, UTCDateTime()), bindparam("slot", type_=Integer())
    columns = found.c.kind, minute, found.c.name, found.c.what, slot, found.c.count
    order = found.c.kind, found.c.name, found.c.what
    names = ["kind", "minute", "name", "what", "slot", "count"]
    insert = insert_for(store, COUNTER).from_select(names, select(*columns).order_by(*order))
    more = {"count": COUNTER.c.count + insert.excluded["count"]}
    return insert.on_conflict_do_update(index_elements=list(COUNTER.primary_key), set_=more)


def slot_of(store: Store) -> int:
    """Return which of a counter's rows this thread adds to."""
    return 0 if store.sqlite else hash((os.getpid(), threading.get_ident())) % SLOTS


def totals(connection: Connection, *kinds: CounterKind) -> list[Total]:
    """Return every total, or those of some kinds."""
    names = COUNTER.c.kind, COUNTER.c.name, COUNTER.c.what
    chosen = select(*names, func.sum(COUNTER.c.count)).group_by(*names).order_by(*names)
    chosen = chosen.where(COUNTER.c.kind.in_(kinds or CounterKind), COUNTER.c.minute == ALL_TIME)
    return [
        Total(CounterKind(kind), name, what, int(count))
        for kind, name, what, count in connection.execute(chosen)
    ]


def forget_minutes(store: Store, connection: Connection) -> dict[CounterKind, int]:
    """Delete minutes that are older than they are kept; return how many rows of each kind."""
    forgotten = {}
    for kind, kept in MINUTES_KEPT.items():
        old = (COUNTER.c.kind == kind, COUNTER.c.minute > ALL_TIME, COUNTER.c.minute < store.after(-kept))
        forgotten[kind] = connection.execute(delete(COUNTER).where(*old)).rowcount
    return forgotten


def count_sweep(store: Store, done: Mapping[str, int]) -> None:
    """Add what a sweeper did; nothing is written when it did nothing."""
    counts = {
        (CounterKind.SWEEP, "", what.replace("_", " ")): count for what, count in done.items() if count > 0
    }
    if counts:
        with store.write() as connection:
            bump(store, connection, counts)


@dataclass(frozen=True)
class Rejected:
    """One delivery that was refused; the ledger sets the time when it is recorded."""

    source: str
    reason: str
    address: str | None = None


def record_rejections(store: Store, batch: Sequence[Rejected]) -> None:
    """Count a batch of rejections and keep the latest as samples, in one transaction.

    Counted asynchronously, after the response. Raises LedgerUnavailable: then none is counted.
    """
    if not batch:
        return
    counts = Counter((CounterKind.REJECTION, item.source, item.reason[:REASON_MAX]) for item in batch)
    sources = sorted({item.source for item in batch})
    samples = [
        {
            "id": uuid7(),
            "source": item.source,
            "reason": item.reason[:REASON_MAX],
            "address": clipped(item.address),
        }
        for item in batch[-SAMPLES_KEPT * len(sources) :]
    ]
    with store.write() as connection:
        connection.execute(SAMPLE.insert().values(at=store.now()), samples)
        for source in sources:
            mine = SAMPLE.c.source == source
            newest = select(SAMPLE.c.id).where(mine).order_by(SAMPLE.c.id.desc())
            oldest_kept = newest.offset(SAMPLES_KEPT - 1).limit(1).scalar_subquery()
            connection.execute(delete(SAMPLE).where(mine, SAMPLE.c.id < oldest_kept))
        bump(store, connection, counts)
