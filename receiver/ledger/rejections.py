"""What was refused at the door: counts by source, reason and minute, and the last 100 without bodies."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, delete, func, literal, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import UTCDateTime

from receiver.ledger.ids import uuid7
from receiver.ledger.models import REJECTION, SAMPLE
from receiver.ledger.queries import rfc3339
from receiver.ledger.store import Store
from receiver.ledger.telemetry.tally import CounterKind, bump
from receiver.ledger.texts import clipped, plain

SAMPLES_KEPT = 100
"""Of each source: enough to see who knocks, too few to fill a disk with."""

REASON_MAX = 64
MINUTES_SHOWN = 1000


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


def rejections(store: Store, source: str | None = None) -> dict[str, Any]:
    """Return the counts and the samples of one source or all, newest first, ready for JSON.

    `{"data": [{source, reason, minute, count}], "latest": [{source, reason, at, address}], "next": null}`;
    at most 1,000 counts.
    """
    counts = select(REJECTION).order_by(REJECTION.c.minute.desc(), REJECTION.c.source, REJECTION.c.reason)
    columns = SAMPLE.c.source, SAMPLE.c.reason, SAMPLE.c.at, SAMPLE.c.address
    latest = select(*columns).order_by(SAMPLE.c.id.desc())
    if source is not None:
        counts = counts.where(REJECTION.c.source == plain(source))
        latest = latest.where(SAMPLE.c.source == plain(source))
    with store.read() as connection:
        data = _listed(connection, counts.limit(MINUTES_SHOWN))
        return {"data": data, "latest": _listed(connection, latest), "next": None}


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


def _listed(connection: Connection, statement: Select[Any]) -> list[dict[str, Any]]:
    rows = connection.execute(statement).mappings()
    return [{name: rfc3339(v) if isinstance(v, datetime) else v for name, v in row.items()} for row in rows]
