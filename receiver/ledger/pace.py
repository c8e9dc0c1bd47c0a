"""How much happens in each minute: accepted, duplicates and done. It reads the window's rows alone."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, column, delete, func, select, values
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import Integer

from receiver.ledger.claims import in_state
from receiver.ledger.ids import uuid7
from receiver.ledger.models import DUPLICATE_MINUTE, EVENT, REJECTION
from receiver.ledger.queries import rfc3339, sources
from receiver.ledger.states import State
from receiver.ledger.store import Store

MINUTE = timedelta(minutes=1)
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


def pace(store: Store, minutes: int) -> dict[str, Any]:
    """Return counts for each of the last `minutes` minutes, the one under way last, ready for JSON.

    `{"from": time, "minutes": n, "accepted": [...], "duplicates": [...], "done": [...]}`. Accepted counts by
    the time in the event's id, which the web process that took it set; both others by the ledger's clock. An
    event that runs again later is done in its last minute only.
    """
    with store.read() as connection:
        now = connection.execute(select(store.now())).scalar_one()
        starts = [now.replace(second=0, microsecond=0) - MINUTE * back for back in range(minutes)][::-1]
        return {
            "from": rfc3339(starts[0]),
            "minutes": minutes,
            "accepted": _accepted(connection, starts),
            "duplicates": _duplicates(connection, starts),
            "done": _done(store, connection, starts),
        }


def flow(store: Store, minutes: int) -> dict[str, dict[str, Any]]:
    """Return what each source got and did in the last `minutes` minutes, as `pace` counts it.

    `{source: {"accepted": n, "duplicates": n, "done": n, "rejections": {reason: n}}}`, for sources that have
    events or rejections.
    """
    with store.read() as connection:
        since = connection.execute(select(store.now())).scalar_one() - MINUTE * minutes
        found: dict[str, dict[str, Any]] = defaultdict(_nothing)
        for name, chosen in _flows(store, since).items():
            for row in connection.execute(chosen):
                found[row.source][name] = int(row.total)
        refused = select(REJECTION.c.source, REJECTION.c.reason, func.sum(REJECTION.c.count).label("total"))
        recent = refused.where(REJECTION.c.minute >= since).group_by(REJECTION.c.source, REJECTION.c.reason)
        for row in connection.execute(recent):
            found[row.source]["rejections"][row.reason] = int(row.total)
    return dict(found)


def _nothing() -> dict[str, Any]:
    return {"accepted": 0, "duplicates": 0, "done": 0, "rejections": {}}


def _flows(store: Store, since: datetime) -> dict[str, Select[Any]]:
    known = sources().subquery()
    mine = and_(EVENT.c.source == known.c.source, EVENT.c.id >= _id_at(since))
    accepted = select(func.count()).select_from(EVENT).where(mine).scalar_subquery().label("total")
    again = select(DUPLICATE_MINUTE.c.source, func.sum(DUPLICATE_MINUTE.c.count).label("total"))
    done = select(EVENT.c.source, func.count().label("total"))
    recent = and_(in_state(store, State.DONE), EVENT.c.finished_at >= since)
    return {
        "accepted": select(known.c.source, accepted),
        "duplicates": again.where(DUPLICATE_MINUTE.c.minute >= since).group_by(DUPLICATE_MINUTE.c.source),
        "done": done.where(recent).group_by(EVENT.c.source),
    }


def _accepted(connection: Connection, starts: Sequence[datetime]) -> list[int]:
    bounds = [(number, _id_at(start), _id_at(start + MINUTE)) for number, start in enumerate(starts)]
    return _counted(connection, EVENT.c.id, bounds)


def _done(store: Store, connection: Connection, starts: Sequence[datetime]) -> list[int]:
    bounds = [(number, start, start + MINUTE) for number, start in enumerate(starts)]
    return _counted(connection, EVENT.c.finished_at, bounds, in_state(store, State.DONE))


def _counted(
    connection: Connection, place: ColumnElement[Any], bounds: Sequence[Any], *also: ColumnElement[bool]
) -> list[int]:
    """Count the rows between each pair of bounds: one search of the place's index for each minute."""
    columns = column("number", Integer()), column("low", place.type), column("high", place.type)
    minute = values(*columns, name="minute").data(bounds).cte("minute")
    within = and_(place >= minute.c.low, place < minute.c.high, *also)
    counted = select(func.count()).select_from(EVENT).where(within).scalar_subquery()
    return [row[1] for row in connection.execute(select(minute.c.number, counted).order_by(minute.c.number))]


def _duplicates(connection: Connection, starts: Sequence[datetime]) -> list[int]:
    minute, total = DUPLICATE_MINUTE.c.minute, func.sum(DUPLICATE_MINUTE.c.count)
    chosen = select(minute, total).where(minute >= starts[0]).group_by(minute)
    found = {at: int(count) for at, count in connection.execute(chosen)}
    return [found.get(start, 0) for start in starts]


def _id_at(at: datetime) -> Any:
    return uuid7(int(at.timestamp() * 1000), 0)
