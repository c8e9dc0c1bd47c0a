"""Figures of the whole ledger, by source and by API."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Connection, Select, and_, cast, column, func, select, values
from sqlalchemy.types import Integer

from receiver.ledger.counters import ALL_TIME, CounterKind, Total, totals
from receiver.ledger.filter import sources
from receiver.ledger.states import OPEN, CallState, State
from receiver.ledger.store import Store
from receiver.ledger.tables import CALL, COUNTER, EVENT, SAMPLE, WORKER, in_state
from receiver.ledger.text import plain, rfc3339, uuid7

MINUTES_OF_REJECTIONS = (COUNTER.c.kind == CounterKind.REJECTION, COUNTER.c.minute > ALL_TIME)


def stats(store: Store) -> dict[str, Any]:
    """Return figures for each source that has events or rejections, ready for JSON.

    `{"data": [{source, accepted, duplicates, conflicts, states: {state: count}, oldest_unfinished,
    oldest_unfinished_seconds, rejections: {reason: count}}], "calls": [{api, count, states: {state: count},
    outcomes: {outcome: count}}], "next": null}`; the oldest of a source without unfinished events is null,
    and rejections cover the last 30 days. It reads every event and every call.
    """
    with store.read() as connection:
        found: dict[str, dict[str, Any]] = defaultdict(_nothing)
        now = connection.execute(select(store.now())).scalar_one()
        _count_events(connection, found)
        _find_oldest(connection, found, now)
        _count_rejections(connection, found)
        calls = _count_calls(connection)
    data = [{"source": source, **found[source]} for source in sorted(found)]
    return {"data": data, "calls": calls, "next": None}


def _nothing() -> dict[str, Any]:
    return {
        "accepted": 0,
        "duplicates": 0,
        "conflicts": 0,
        "states": dict.fromkeys(map(str, State), 0),
        "oldest_unfinished": None,
        "oldest_unfinished_seconds": None,
        "rejections": {},
    }


def _count_events(connection: Connection, found: dict[str, dict[str, Any]]) -> None:
    sums = [func.sum(column).label(column.name) for column in (EVENT.c.duplicates, EVENT.c.conflicts)]
    grouped = select(EVENT.c.source, EVENT.c.state, func.count().label("events"), *sums)
    for row in connection.execute(grouped.group_by(EVENT.c.source, EVENT.c.state)):
        figures = found[row.source]
        figures["states"][row.state] = row.events
        figures["accepted"] += row.events
        figures["duplicates"] += int(row.duplicates)
        figures["conflicts"] += int(row.conflicts)


def _find_oldest(connection: Connection, found: dict[str, dict[str, Any]], now: Any) -> None:
    oldest = select(EVENT.c.source, func.min(EVENT.c.received_at).label("at")).where(EVENT.c.state.in_(OPEN))
    for row in connection.execute(oldest.group_by(EVENT.c.source)):
        found[row.source]["oldest_unfinished"] = rfc3339(row.at)
        found[row.source]["oldest_unfinished_seconds"] = max(0.0, (now - row.at).total_seconds())


def _count_rejections(connection: Connection, found: dict[str, dict[str, Any]]) -> None:
    grouped = select(COUNTER.c.name, COUNTER.c.what, func.sum(COUNTER.c.count).label("refused"))
    grouped = grouped.where(*MINUTES_OF_REJECTIONS).group_by(COUNTER.c.name, COUNTER.c.what)
    for row in connection.execute(grouped):
        found[row.name]["rejections"][row.what] = int(row.refused)


def _count_calls(connection: Connection) -> list[dict[str, Any]]:
    columns = CALL.c.api, CALL.c.state, CALL.c.outcome
    found: dict[str, dict[str, Any]] = {}
    grouped = select(*columns, func.count().label("calls")).group_by(*columns).order_by(CALL.c.api)
    for row in connection.execute(grouped):
        nothing = {"count": 0, "states": dict.fromkeys(map(str, CallState), 0), "outcomes": {}}
        figures = found.setdefault(row.api, nothing)
        figures["count"] += row.calls
        figures["states"][row.state] += row.calls
        if row.outcome is not None:
            figures["outcomes"][row.outcome] = figures["outcomes"].get(row.outcome, 0) + row.calls
    return [{"api": api, **figures} for api, figures in found.items()]


# What is not finished, or waits for a person: read from the rows in those states alone.


NEEDS_PERSON = (State.PARKED, State.DEAD)
"""States that an event leaves only when a person, or for dead ones a new delivery, makes it."""


def pending(store: Store) -> dict[str, Any]:
    """Return what is on its way and what waits for a person, ready for JSON.

    `{"at": time, "states": {source: {state: count}}, "oldest": {id, source, event_id, type, state,
    received_at, seconds} or null, "due": {count, seconds}}`: the oldest event that ends by itself, and how
    many wait for a worker, the longest for so many seconds.
    """
    with store.read() as connection:
        now = connection.execute(select(store.now())).scalar_one()
        return {
            "at": rfc3339(now),
            "states": _states(connection),
            "oldest": _oldest(connection, now),
            "due": _due(connection, store, now),
        }


def _states(connection: Connection) -> dict[str, dict[str, int]]:
    grouped = select(EVENT.c.source, EVENT.c.state, func.count().label("events"))
    chosen = grouped.where(EVENT.c.state.in_((*OPEN, *NEEDS_PERSON))).group_by(EVENT.c.source, EVENT.c.state)
    found: dict[str, dict[str, int]] = {}
    for row in connection.execute(chosen):
        found.setdefault(row.source, {})[row.state] = row.events
    return found


def _oldest(connection: Connection, now: Any) -> dict[str, Any] | None:
    names = ("id", "source", "event_id", "type", "state", "received_at")
    columns = [EVENT.c[name] for name in names]
    # One look into the index for each state; a list of states would sort all of their rows.
    rows = [
        connection.execute(
            select(*columns).where(EVENT.c.state == state).order_by(EVENT.c.id).limit(1)
        ).first()
        for state in OPEN
    ]
    row = min((row for row in rows if row), key=lambda row: row.received_at, default=None)
    if row is None:
        return None
    told = {name: str(getattr(row, name)) for name in names}
    waits = max(0.0, (now - row.received_at).total_seconds())
    return {**told, "received_at": rfc3339(row.received_at), "seconds": waits}


def _due(connection: Connection, store: Store, now: Any) -> dict[str, Any]:
    due = (in_state(store, State.RECEIVED, State.WAITING), EVENT.c.due_at <= store.now())
    row = connection.execute(select(func.count(), func.min(EVENT.c.due_at)).where(*due)).one()
    return {"count": row[0], "seconds": max(0.0, (now - row[1]).total_seconds()) if row[1] else 0.0}


# What was refused at the door: counts by source, reason and minute, and the last 100 without bodies.


MINUTES_SHOWN = 1000


def rejections(store: Store, source: str | None = None) -> dict[str, Any]:
    """Return the counts and the samples of one source or all, newest first, ready for JSON.

    `{"data": [{source, reason, minute, count}], "latest": [{source, reason, at, address}], "next": null}`;
    at most 1,000 counts.
    """
    source_, reason, minute = COUNTER.c.name.label("source"), COUNTER.c.what.label("reason"), COUNTER.c.minute
    # A minute's count is spread over rows, and PostgreSQL makes their sum a decimal.
    count = cast(func.sum(COUNTER.c.count), BigInteger).label("count")
    counts = select(source_, reason, minute, count).where(*MINUTES_OF_REJECTIONS)
    counts = counts.group_by(minute, COUNTER.c.name, COUNTER.c.what)
    counts = counts.order_by(minute.desc(), COUNTER.c.name, COUNTER.c.what)
    columns = SAMPLE.c.source, SAMPLE.c.reason, SAMPLE.c.at, SAMPLE.c.address
    latest = select(*columns).order_by(SAMPLE.c.id.desc())
    if source is not None:
        counts = counts.where(COUNTER.c.name == plain(source))
        latest = latest.where(SAMPLE.c.source == plain(source))
    with store.read() as connection:
        data = _listed(connection, counts.limit(MINUTES_SHOWN))
        return {"data": data, "latest": _listed(connection, latest), "next": None}


def _listed(connection: Connection, statement: Select[Any]) -> list[dict[str, Any]]:
    rows = connection.execute(statement).mappings()
    return [{name: rfc3339(v) if isinstance(v, datetime) else v for name, v in row.items()} for row in rows]


# How much happens in each minute: accepted, duplicates and done. It reads the window's rows alone.


MINUTE = timedelta(minutes=1)


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
        found: dict[str, dict[str, Any]] = defaultdict(_no_flow)
        for name, chosen in _flows(store, since).items():
            for row in connection.execute(chosen):
                found[row.source][name] = int(row.total)
        refused = select(COUNTER.c.name, COUNTER.c.what, func.sum(COUNTER.c.count).label("total"))
        recent = refused.where(*MINUTES_OF_REJECTIONS, COUNTER.c.minute >= since)
        for row in connection.execute(recent.group_by(COUNTER.c.name, COUNTER.c.what)):
            found[row.name]["rejections"][row.what] = int(row.total)
    return dict(found)


def _no_flow() -> dict[str, Any]:
    return {"accepted": 0, "duplicates": 0, "done": 0, "rejections": {}}


def _flows(store: Store, since: datetime) -> dict[str, Select[Any]]:
    known = sources().subquery()
    mine = and_(EVENT.c.source == known.c.source, EVENT.c.id >= _id_at(since))
    accepted = select(func.count()).select_from(EVENT).where(mine).scalar_subquery().label("total")
    again = select(COUNTER.c.name.label("source"), func.sum(COUNTER.c.count).label("total"))
    again = again.where(COUNTER.c.kind == CounterKind.DELIVERY, COUNTER.c.minute >= since)
    done = select(EVENT.c.source, func.count().label("total"))
    recent = and_(in_state(store, State.DONE), EVENT.c.finished_at >= since)
    return {
        "accepted": select(known.c.source, accepted),
        "duplicates": again.group_by(COUNTER.c.name),
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
    # Minutes of deliveries are those of duplicates and conflicts: `counters.py` leaves first-seen ones out.
    minute, total = COUNTER.c.minute, func.sum(COUNTER.c.count)
    chosen = select(minute, total).where(COUNTER.c.kind == CounterKind.DELIVERY, minute >= starts[0])
    found = {at: int(count) for at, count in connection.execute(chosen.group_by(minute))}
    return [found.get(start, 0) for start in starts]


def _id_at(at: datetime) -> Any:
    return uuid7(int(at.timestamp() * 1000), 0)


# Which workers live: each one says so at every sweep, and is forgotten an hour after its last word.


def workers(store: Store) -> list[dict[str, Any]]:
    """Return the workers of the last hour, the one seen latest first, ready for JSON.

    `[{name, started_at, seen_at, silent_seconds}]`.
    """
    with store.read() as connection:
        chosen = select(WORKER, store.now().label("now")).order_by(WORKER.c.seen_at.desc())
        rows = connection.execute(chosen).all()
    return [
        {
            "name": row.name,
            "started_at": rfc3339(row.started_at),
            "seen_at": rfc3339(row.seen_at),
            "silent_seconds": max(0.0, (row.now - row.seen_at).total_seconds()),
        }
        for row in rows
    ]


# What /metrics tells of the ledger: totals that only grow, and how things stand. Cheap at any size.


PRESENT = 60.0
"""Seconds without a word after which a worker does not count as present; it sweeps every few."""


@dataclass(frozen=True)
class Figures:
    """The ledger at one moment. Seconds are 0 where nothing waits."""

    totals: list[Total]
    states: dict[str, dict[str, int]]
    """Events that are not finished, parked or dead, by source and state: no row of a done one is read."""
    oldest_unfinished: float
    due: int
    longest_due: float
    parked_calls: dict[str, int]
    """By API."""
    workers: int


def figures(store: Store) -> Figures:
    """Read all of it. Raises LedgerUnavailable."""
    with store.read() as connection:
        joined = store.joined(connection)
        standing: dict[str, Any] = pending(joined)
        oldest = standing["oldest"]
        return Figures(
            totals=totals(connection),
            states=standing["states"],
            oldest_unfinished=oldest["seconds"] if oldest else 0.0,
            due=standing["due"]["count"],
            longest_due=standing["due"]["seconds"],
            parked_calls=_parked_calls(connection),
            workers=sum(one["silent_seconds"] < PRESENT for one in workers(joined)),
        )


def _parked_calls(connection: Connection) -> dict[str, int]:
    parked = select(CALL.c.api, func.count()).where(CALL.c.state == CallState.PARKED)
    return {row[0]: row[1] for row in connection.execute(parked.group_by(CALL.c.api))}
