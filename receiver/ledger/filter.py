"""Which events, and which calls: the one parsed form of what the command line, /v1 and the pages ask for."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, false, func, select

from receiver.ledger.states import CallState, State
from receiver.ledger.store import Store
from receiver.ledger.tables import EVENT
from receiver.ledger.text import plain, rfc3339, storable, uuid7

# How far the clock of a web host, which makes the ids, may be off the database's, which sets the times.
CLOCK_SLACK = timedelta(hours=1)

# Milliseconds: the latest time that an id can begin with.
ID_TIME_MAX = (1 << 48) - 1


@dataclass(frozen=True)
class CallFilter:
    """Which calls: every part that is given must hold. `event` is the ledger's id."""

    state: CallState | None = None
    api: str | None = None
    source: str | None = None
    event_id: str | None = None
    event: UUID | None = None


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
        given = {name: part for name, part in asdict(self).items() if part is not None}
        return {name: rfc3339(part) if isinstance(part, datetime) else part for name, part in given.items()}


def conditions(store: Store, which: EventFilter) -> Iterable[ColumnElement[bool]]:
    """Yield a filter's conditions on the table of events."""
    for name in ("source", "type", "state"):
        if (wanted := getattr(which, name)) is not None:
            yield EVENT.c[name] == wanted if plain(wanted) == wanted else false()
    if which.event_id is not None:
        yield EVENT.c.event_id == storable(which.event_id)
        if which.source is None:
            # The index on (source, event_id) is searched once for each source.
            yield EVENT.c.source.in_(sources())
    # Ids begin with their time, so a span of ids bounds what has to be read for a span of time.
    if which.since is not None:
        yield EVENT.c.received_at >= which.since
        yield EVENT.c.id >= first_id(which.since, -CLOCK_SLACK - max(store.shift, timedelta(0)))
    if which.until is not None:
        yield EVENT.c.received_at < which.until
        yield EVENT.c.id < first_id(which.until, CLOCK_SLACK - min(store.shift, timedelta(0)))


def sources() -> Select[Any]:
    """Return a query for the sources that have events; it looks into the index once for each."""
    hop = select(func.min(EVENT.c.source).label("source")).cte("sources", recursive=True)
    following = select(func.min(EVENT.c.source)).where(EVENT.c.source > hop.c.source).scalar_subquery()
    hop = hop.union_all(select(following).where(hop.c.source.is_not(None)))
    return select(hop.c.source).where(hop.c.source.is_not(None))


def first_id(at: datetime, moved: timedelta = timedelta(0)) -> UUID:
    """Return the lowest id that an event of a millisecond can have; `moved` shifts it."""
    milliseconds = int((at.timestamp() + moved.total_seconds()) * 1000)
    return uuid7(max(0, min(milliseconds, ID_TIME_MAX)), 0)
