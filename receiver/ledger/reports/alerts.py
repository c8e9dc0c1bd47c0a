"""Alerts for people: events that died or were parked, a backlog, and a spike of rejections.

`take_alert` gives one due alert to one worker, which sends it and then calls `mark_sent`. A worker that dies
in between leaves it to the next one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select, update

from receiver.ledger.counters import CounterKind, totals
from receiver.ledger.states import UNFINISHED
from receiver.ledger.store import Store
from receiver.ledger.tables import ALERT, COUNTER, EVENT, in_state, insert_for

# The least time between two alerts about one subject; what happens meanwhile is counted.
AGAIN = timedelta(hours=1)

# How long a worker may take to send: after that another one does, for it may have died.
TAKEN = timedelta(seconds=60)

SPIKE_WINDOW, SPIKE_BEFORE = timedelta(minutes=5), timedelta(hours=1)

# A spike: so many rejections of a source in five minutes, and so many times the pace of the hour before.
SPIKE_LEAST, SPIKE_TIMES = 50, 4


class Topic(StrEnum):
    """What an alert can be about."""

    DEAD = CounterKind.DEAD.value
    PARKED = CounterKind.PARKED.value
    BACKLOG = "backlog"
    REJECTIONS = "rejections"


@dataclass(frozen=True)
class Subject:
    """What an alert is about: a topic, with a source and a type where it has them."""

    topic: Topic
    name: str = ""
    what: str = ""


@dataclass(frozen=True)
class DueAlert:
    """An alert to send. `count` is what happened since the last one, or how much there is now."""

    subject: Subject
    count: int
    total: int
    """The total so far, which `mark_sent` stores, or 0 where nothing adds up."""
    seconds: float = 0.0
    """How long it has lasted, of a backlog."""


def take_alert(store: Store, backlog: timedelta) -> DueAlert | None:
    """Return one alert that this process is to send now, if one is due; nobody else gets it for a minute.

    Once `mark_sent` has it, its subject rests for an hour; without that it is given out again.
    """
    with store.read() as connection:
        busy = or_(ALERT.c.taken_until > store.now(), ALERT.c.told_at > store.after(-AGAIN))
        rows = connection.execute(select(ALERT.c.kind, ALERT.c.name, ALERT.c.what).where(busy))
        resting = {Subject(Topic(topic), name, what) for topic, name, what in rows}
        # A backlog is counted only if its alert may be sent: with many events, counting takes longest.
        overdue = () if Subject(Topic.BACKLOG) in resting else _overdue(store, connection, backlog)
        found = (*_stuck(connection), *overdue, *_spikes(store, connection))
    candidates = [alert for alert in found if alert.subject not in resting]
    # No lock was held so far: of several workers that found the same candidate, `_take` lets one through.
    return next((taken for alert in candidates if (taken := _take(store, alert))), None)


def mark_sent(store: Store, alert: DueAlert) -> None:
    """Write down that an alert was sent: for an hour its subject rests."""
    change = {"told": alert.total, "told_at": store.now(), "taken_until": None}
    with store.write() as connection:
        connection.execute(update(ALERT).where(_is(alert.subject)).values(**change))


def _stuck(connection: Connection) -> Iterator[DueAlert]:
    rows = connection.execute(select(ALERT.c.kind, ALERT.c.name, ALERT.c.what, ALERT.c.told)).all()
    before = {Subject(Topic(topic), name, what): count for topic, name, what, count in rows}
    for total in totals(connection, CounterKind.DEAD, CounterKind.PARKED):
        subject = Subject(Topic(total.kind), total.name, total.what)
        if total.count > before.get(subject, 0):
            yield DueAlert(subject, total.count, total.count)


def _overdue(store: Store, connection: Connection, backlog: timedelta) -> Iterator[DueAlert]:
    late = (in_state(store, *UNFINISHED), EVENT.c.due_at <= store.after(-backlog))
    first = connection.execute(
        select(EVENT.c.due_at, store.now().label("now")).where(*late).order_by(EVENT.c.due_at).limit(1)
    ).first()
    if first:
        count = connection.execute(select(func.count()).select_from(EVENT).where(*late)).scalar_one()
        yield DueAlert(Subject(Topic.BACKLOG), count, 0, (first.now - first.due_at).total_seconds())


def _spikes(store: Store, connection: Connection) -> Iterator[DueAlert]:
    begin = store.after(-SPIKE_WINDOW)
    recent, before = COUNTER.c.minute > begin, COUNTER.c.minute <= begin
    sums = [func.coalesce(func.sum(COUNTER.c.count).filter(part), 0) for part in (recent, before)]
    hour = COUNTER.c.minute > store.after(-SPIKE_WINDOW - SPIKE_BEFORE)
    refused = select(COUNTER.c.name, *sums).where(COUNTER.c.kind == CounterKind.REJECTION, hour)
    for source, now, then in connection.execute(refused.group_by(COUNTER.c.name)):
        if now >= max(SPIKE_LEAST, SPIKE_TIMES * int(then) * (SPIKE_WINDOW / SPIKE_BEFORE)):
            yield DueAlert(Subject(Topic.REJECTIONS, source), int(now), 0)


def _take(store: Store, alert: DueAlert) -> DueAlert | None:
    """Take a subject for a while; None when another worker has it, or it rests, or nothing is new."""
    subject = alert.subject
    row: dict[str, Any] = {"kind": subject.topic, "name": subject.name, "what": subject.what, "told": 0}
    insert = insert_for(store, ALERT).values(**row)
    with store.write() as connection:
        connection.execute(insert.on_conflict_do_nothing())
        free = or_(ALERT.c.taken_until.is_(None), ALERT.c.taken_until <= store.now())
        rested = or_(ALERT.c.told_at.is_(None), ALERT.c.told_at <= store.after(-AGAIN))
        news = (ALERT.c.told < alert.total,) if alert.total else ()
        taken = update(ALERT).where(_is(subject), free, rested, *news)
        claimed = taken.values(taken_until=store.after(TAKEN)).returning(ALERT.c.told)
        before = connection.execute(claimed).scalar()
    return None if before is None else replace(alert, count=alert.count - before)


def _is(subject: Subject) -> ColumnElement[bool]:
    return and_(ALERT.c.kind == subject.topic, ALERT.c.name == subject.name, ALERT.c.what == subject.what)
