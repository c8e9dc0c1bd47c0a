"""Reading the ledger: which events there are. The command line, /v1 and the dashboard all ask here."""

import base64
import binascii
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Row, false, func, select

from receiver.ledger.errors import LedgerError, UnknownEvent
from receiver.ledger.ids import uuid7
from receiver.ledger.models import EVENT
from receiver.ledger.states import State
from receiver.ledger.store import Store
from receiver.ledger.texts import plain, storable_id

PAGE_MAX = 500
"""Events of one page at most: more is a second page, so that one reader cannot hold a connection for long."""

CLOCK_SLACK = timedelta(hours=1)
"""How far a web host's clock, which makes the ids, may be off the database's, which says when."""

ID_TIME_MAX = (1 << 48) - 1
"""Milliseconds: the latest time that an id can begin with."""

TEXTS = ("source", "event_id", "type", "state")
TIMES = ("received_at", "due_at")
SHOWN = ("id", *TEXTS, "attempts", "generation", *TIMES, "reason", "duplicates", "conflicts")


class BadCursor(LedgerError):
    """This cursor was not made here: leave it out to start from the newest."""


@dataclass(frozen=True)
class EventFilter:
    """Which events: every part that is given must hold. `since` is inclusive, `until` is not."""

    source: str | None = None
    state: State | None = None
    type: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    event_id: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the parts that are given, times as text."""
        parts = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            name: rfc3339(part) if isinstance(part, datetime) else part
            for name, part in parts.items()
            if part is not None
        }


@dataclass(frozen=True)
class Page:
    """Some events, newest first, as JSON-ready dictionaries, and where the next page starts."""

    data: list[dict[str, Any]]
    next: str | None

    def as_json(self) -> dict[str, Any]:
        """Return the shape of every list: `{"data": [...], "next": cursor or null}`."""
        return {"data": self.data, "next": self.next}


def list_events(store: Store, which: EventFilter, *, limit: int = 50, cursor: str | None = None) -> Page:
    """Return one page of events, newest first. Events that arrive meanwhile shift no page.

    Raises BadCursor for a cursor that was not made here.
    """
    size = max(1, min(limit, PAGE_MAX))
    statement = (
        select(*[EVENT.c[name] for name in SHOWN])
        .where(*conditions(store, which))
        .order_by(EVENT.c.id.desc())
    )
    if cursor:
        statement = statement.where(EVENT.c.id < read_cursor(cursor))
    with store.read() as connection:
        return paged(connection.execute(statement.limit(size + 1)).all(), size, event_json)


def paged(rows: Sequence[Row[Any]], size: int, shown: Callable[[Row[Any]], dict[str, Any]]) -> Page:
    """Return the first `size` rows as a page; one row more says that there is a next one."""
    more = _write_cursor(rows[size - 1].id) if len(rows) > size else None
    return Page([shown(row) for row in rows[:size]], more)


def count_events(store: Store, which: EventFilter) -> int:
    """Return how many events there are."""
    with store.read() as connection:
        chosen = select(func.count()).select_from(EVENT).where(*conditions(store, which))
        return connection.execute(chosen).scalar_one()


def find_event(store: Store, source: str, event_id: str) -> UUID:
    """Return the ledger's id of an event; raises UnknownEvent."""
    with store.read() as connection:
        same = conditions(store, EventFilter(source=source, event_id=event_id))
        found: UUID | None = connection.execute(select(EVENT.c.id).where(*same)).scalar()
    if found is None:
        raise UnknownEvent(f"No event {event_id} of {source} is in the ledger.")
    return found


def conditions(store: Store, which: EventFilter) -> Iterable[ColumnElement[bool]]:
    """Yield what a filter asks of the table of events."""
    for name in ("source", "type", "state"):
        if (wanted := getattr(which, name)) is not None:
            yield EVENT.c[name] == wanted if plain(wanted) == wanted else false()
    if which.event_id is not None:
        yield EVENT.c.event_id == storable_id(which.event_id)
        if which.source is None:
            yield EVENT.c.source.in_(sources())
    # Ids begin with their time, so a span of ids bounds what has to be read for a span of time.
    if which.since is not None:
        yield EVENT.c.received_at >= which.since
        yield EVENT.c.id >= _first_id(which.since, -CLOCK_SLACK - max(store.shift, timedelta(0)))
    if which.until is not None:
        yield EVENT.c.received_at < which.until
        yield EVENT.c.id < _first_id(which.until, CLOCK_SLACK - min(store.shift, timedelta(0)))


def sources() -> Any:
    """Return a query for the sources that have events; it looks into the index once for each."""
    hop = select(func.min(EVENT.c.source).label("source")).cte("sources", recursive=True)
    following = select(func.min(EVENT.c.source)).where(EVENT.c.source > hop.c.source).scalar_subquery()
    hop = hop.union_all(select(following).where(hop.c.source.is_not(None)))
    return select(hop.c.source).where(hop.c.source.is_not(None))


def event_json(row: Row[Any]) -> dict[str, Any]:
    """Return an event as lists show it: the columns of SHOWN, ids and times as text."""
    shown = {name: getattr(row, name) for name in SHOWN}
    return {**shown, "id": str(row.id), **{name: rfc3339(shown[name]) for name in TIMES}}


def rfc3339(at: datetime | None) -> str | None:
    """Write a time as RFC 3339 in UTC, with a Z."""
    return None if at is None else at.isoformat().replace("+00:00", "Z")


def _first_id(at: datetime, moved: timedelta) -> UUID:
    milliseconds = int((at.timestamp() + moved.total_seconds()) * 1000)
    return uuid7(max(0, min(milliseconds, ID_TIME_MAX)), 0)


def _write_cursor(last: UUID) -> str:
    return base64.urlsafe_b64encode(last.bytes).decode().rstrip("=")


def read_cursor(cursor: str) -> UUID:
    """Return the last id of the page before; raises BadCursor."""
    try:
        return UUID(bytes=base64.urlsafe_b64decode(cursor.encode() + b"=="))
    except (binascii.Error, ValueError):
        raise BadCursor from None
