"""Totals that only grow: bumped in the transaction that does what they count, read in one small query."""

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Insert, func, select
from sqlalchemy.dialects import postgresql, sqlite

from receiver.ledger.store import Store
from receiver.ledger.telemetry.models import TALLY
from receiver.ledger.texts import clipped

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
