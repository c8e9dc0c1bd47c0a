"""What to tell people: found in the ledger, and given to one worker, which tells it and then says so."""

from collections.abc import Container, Iterator
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from receiver.ledger.counters import CounterKind, totals
from receiver.ledger.states import UNFINISHED
from receiver.ledger.store import Store
from receiver.ledger.tables import ALERT, COUNTER, EVENT, in_state

AGAIN = timedelta(hours=1)
"""The least time between two alerts about one subject; what happens meanwhile is counted."""

TAKEN = timedelta(seconds=60)
"""How long a worker may take to tell: after that another one does, for it may have died."""


class Topic(StrEnum):
    """What there is to tell of."""

    DEAD = CounterKind.DEAD.value
    PARKED = CounterKind.PARKED.value
    BACKLOG = "backlog"
    REJECTIONS = "rejections"


SPIKE_WINDOW, SPIKE_BEFORE = timedelta(minutes=5), timedelta(hours=1)

SPIKE_LEAST, SPIKE_TIMES = 50, 4
"""A spike: so many rejections of a source in five minutes, and so many times the pace of the hour before."""


@dataclass(frozen=True)
class Subject:
    """What an alert is about: a topic, with a source and a type where it has them."""

    topic: Topic
    name: str = ""
    what: str = ""


@dataclass(frozen=True)
class News:
    """Something to tell. `count` is what happened since it was told last, or how much there is now."""

    subject: Subject
    count: int
    total: int
    """What `told` becomes: the total so far, or 0 where nothing adds up."""
    seconds: float = 0.0
    """How long it has lasted, of a backlog."""


def next_news(store: Store, backlog: timedelta) -> News | None:
    """Return one thing that this process is to tell now, if there is any; nobody else gets it for a minute.

    Whoever told it says so with `told`; without that word it is given out again.
    """
    with store.read() as connection:
        quiet = _quiet(store, connection)
        found = [news for news in _found(store, connection, backlog, quiet) if news.subject not in quiet]
    return next((taken for news in found if (taken := _take(store, news))), None)


def told(store: Store, news: News) -> None:
    """Write down that something was told: for an hour nothing more is."""
    change = {"told": news.total, "told_at": store.now(), "taken_until": None}
    with store.write() as connection:
        connection.execute(update(ALERT).where(_is(news.subject)).values(**change))


def _quiet(store: Store, connection: Connection) -> set[Subject]:
    """Return what is being told, or was within the hour."""
    busy = or_(ALERT.c.taken_until > store.now(), ALERT.c.told_at > store.after(-AGAIN))
    rows = connection.execute(select(ALERT.c.kind, ALERT.c.name, ALERT.c.what).where(busy))
    return {Subject(Topic(topic), name, what) for topic, name, what in rows}


def _found(
    store: Store, connection: Connection, backlog: timedelta, quiet: Container[Subject]
) -> Iterator[News]:
    """Yield what may have to be told: no lock is held here, and `_take` decides."""
    yield from _stuck(connection)
    if Subject(Topic.BACKLOG) not in quiet:
        yield from _overdue(store, connection, backlog)
    yield from _spikes(store, connection)


def _stuck(connection: Connection) -> Iterator[News]:
    rows = connection.execute(select(ALERT.c.kind, ALERT.c.name, ALERT.c.what, ALERT.c.told)).all()
    before = {Subject(Topic(topic), name, what): told for topic, name, what, told in rows}
    for total in totals(connection, CounterKind.DEAD, CounterKind.PARKED):
        subject = Subject(Topic(total.kind), total.name, total.what)
        if total.count > before.get(subject, 0):
            yield News(subject, total.count, total.count)


def _overdue(store: Store, connection: Connection, backlog: timedelta) -> Iterator[News]:
    late = (in_state(store, *UNFINISHED), EVENT.c.due_at <= store.after(-backlog))
    first = connection.execute(
        select(EVENT.c.due_at, store.now().label("now")).where(*late).order_by(EVENT.c.due_at).limit(1)
    ).first()
    if first:
        count = connection.execute(select(func.count()).select_from(EVENT).where(*late)).scalar_one()
        yield News(Subject(Topic.BACKLOG), count, 0, (first.now - first.due_at).total_seconds())


def _spikes(store: Store, connection: Connection) -> Iterator[News]:
    begin = store.after(-SPIKE_WINDOW)
    recent, before = COUNTER.c.minute > begin, COUNTER.c.minute <= begin
    sums = [func.coalesce(func.sum(COUNTER.c.count).filter(part), 0) for part in (recent, before)]
    hour = COUNTER.c.minute > store.after(-SPIKE_WINDOW - SPIKE_BEFORE)
    refused = select(COUNTER.c.name, *sums).where(COUNTER.c.kind == CounterKind.REJECTION, hour)
    for source, now, then in connection.execute(refused.group_by(COUNTER.c.name)):
        if now >= max(SPIKE_LEAST, SPIKE_TIMES * int(then) * (SPIKE_WINDOW / SPIKE_BEFORE)):
            yield News(Subject(Topic.REJECTIONS, source), int(now), 0)


def _take(store: Store, news: News) -> News | None:
    """Take a subject for a while; None when another worker has it, or it is too soon, or old news."""
    with store.write() as connection:
        _make_row(store, connection, news.subject)
        free = or_(ALERT.c.taken_until.is_(None), ALERT.c.taken_until <= store.now())
        quiet = or_(ALERT.c.told_at.is_(None), ALERT.c.told_at <= store.after(-AGAIN))
        fresh = (free, quiet, ALERT.c.told < news.total) if news.total else (free, quiet)
        taken = (
            update(ALERT)
            .where(_is(news.subject), *fresh)
            .values(taken_until=store.after(TAKEN))
            .returning(ALERT.c.told)
        )
        before = connection.execute(taken).scalar()
    return None if before is None else News(news.subject, news.count - before, news.total, news.seconds)


def _make_row(store: Store, connection: Connection, subject: Subject) -> None:
    row: dict[str, Any] = {"kind": subject.topic, "name": subject.name, "what": subject.what, "told": 0}
    insert = (sqlite if store.sqlite else postgresql).insert(ALERT).values(**row)
    connection.execute(insert.on_conflict_do_nothing())


def _is(subject: Subject) -> ColumnElement[bool]:
    return and_(ALERT.c.kind == subject.topic, ALERT.c.name == subject.name, ALERT.c.what == subject.what)
