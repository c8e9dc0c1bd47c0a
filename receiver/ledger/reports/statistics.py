"""Figures of the ledger: by source and API, of the last minutes, of the workers, and for /metrics.

`stats` reads every event. `pending`, `flow`, `throughput` and `figures` are asked again and again, so they
read only rows that are not finished, rows of their window, and totals.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, column, func, select, values
from sqlalchemy.types import Integer

from receiver.ledger.counters import ALL_TIME, CounterKind, Total, totals
from receiver.ledger.filter import first_id, sources
from receiver.ledger.reports import models
from receiver.ledger.states import OPEN, UNFINISHED, CallState, SendOutcome, State
from receiver.ledger.store import Store
from receiver.ledger.tables import CALL, COUNTER, EVENT, SAMPLE, WORKER, in_state
from receiver.ledger.text import plain

# States that an event leaves only when a person, or for dead ones a new delivery, makes it.
NEEDS_PERSON = (State.PARKED, State.DEAD)

# Counts of rejections in one answer: a flood over many sources must not make it unreadable.
REJECTION_MINUTES_MAX = 1000

REJECTION_MINUTES = (COUNTER.c.kind == CounterKind.REJECTION, COUNTER.c.minute > ALL_TIME)

# Deliveries counted by the minute: duplicates and conflicts, since ids count what is first-seen.
DUPLICATES = COUNTER.c.kind == CounterKind.DELIVERY

MINUTE = timedelta(minutes=1)

# Seconds of silence after which a worker does not count as present; it sweeps every few.
PRESENT = 60.0


def stats(store: Store) -> models.Stats:
    """Return figures for each source that has events or rejections, and for each API that was called.

    The oldest of a source without unfinished events is None, and rejections cover the last 30 days. It reads
    every event and every call.
    """
    with store.read() as connection:
        data = _figures_by_source(store, connection)
        return models.Stats(data=data, calls=_figures_by_api(connection), next=None)


def _figures_by_source(store: Store, connection: Connection) -> list[models.FiguresView]:
    found: dict[str, dict[str, Any]] = defaultdict(
        lambda: {
            "accepted": 0,
            "duplicates": 0,
            "conflicts": 0,
            "states": dict.fromkeys(State, 0),
            "oldest_unfinished": None,
            "oldest_unfinished_seconds": None,
            "rejections": {},
        }
    )
    now = connection.execute(select(store.now())).scalar_one()
    sums = [func.sum(column).label(column.name) for column in (EVENT.c.duplicates, EVENT.c.conflicts)]
    by_state = select(EVENT.c.source, EVENT.c.state, func.count().label("events"), *sums)
    for row in connection.execute(by_state.group_by(EVENT.c.source, EVENT.c.state)):
        counts = found[row.source]
        counts["states"][State(row.state)] = row.events
        counts["accepted"] += row.events
        counts["duplicates"] += int(row.duplicates)
        counts["conflicts"] += int(row.conflicts)
    oldest = select(EVENT.c.source, func.min(EVENT.c.received_at).label("at")).where(EVENT.c.state.in_(OPEN))
    for row in connection.execute(oldest.group_by(EVENT.c.source)):
        seconds = max(0.0, (now - row.at).total_seconds())
        found[row.source] |= {"oldest_unfinished": row.at, "oldest_unfinished_seconds": seconds}
    refused = select(COUNTER.c.name, COUNTER.c.what, func.sum(COUNTER.c.count)).where(*REJECTION_MINUTES)
    for source, reason, count in connection.execute(refused.group_by(COUNTER.c.name, COUNTER.c.what)):
        found[source]["rejections"][reason] = int(count)
    return [models.FiguresView(source=source, **found[source]) for source in sorted(found)]


def _figures_by_api(connection: Connection) -> list[models.CallFigures]:
    found: dict[str, models.CallFigures] = {}
    columns = CALL.c.api, CALL.c.state, CALL.c.outcome
    grouped = select(*columns, func.count().label("calls")).group_by(*columns).order_by(CALL.c.api)
    for row in connection.execute(grouped):
        nothing = models.CallFigures(api=row.api, count=0, states=dict.fromkeys(CallState, 0), outcomes={})
        counts = found.setdefault(row.api, nothing)
        counts.count += row.calls
        counts.states[CallState(row.state)] += row.calls
        if row.outcome is not None:
            outcome = SendOutcome(row.outcome)
            counts.outcomes[outcome] = counts.outcomes.get(outcome, 0) + row.calls
    return list(found.values())


def rejections(store: Store, source: str | None = None) -> models.Rejections:
    """Return the counts and the samples of one source or all, newest first; at most 1,000 counts."""
    source_, reason, minute = COUNTER.c.name.label("source"), COUNTER.c.what.label("reason"), COUNTER.c.minute
    # One count may be spread over several rows.
    counts = select(source_, reason, minute, func.sum(COUNTER.c.count).label("count"))
    counts = counts.where(*REJECTION_MINUTES).group_by(minute, COUNTER.c.name, COUNTER.c.what)
    counts = counts.order_by(minute.desc(), COUNTER.c.name, COUNTER.c.what)
    columns = SAMPLE.c.source, SAMPLE.c.reason, SAMPLE.c.at, SAMPLE.c.address
    latest = select(*columns).order_by(SAMPLE.c.id.desc())
    if source is not None:
        counts = counts.where(COUNTER.c.name == plain(source))
        latest = latest.where(SAMPLE.c.source == plain(source))
    with store.read() as connection:
        rows = connection.execute(counts.limit(REJECTION_MINUTES_MAX)).mappings()
        data = [models.RejectionCount(**row) for row in rows]
        samples = [models.Rejection(**row) for row in connection.execute(latest).mappings()]
    return models.Rejections(data=data, latest=samples, next=None)


def pending(store: Store) -> models.Pending:
    """Return what is on its way and what waits for a person. It reads no row of an event that is done."""
    with store.read() as connection:
        now = connection.execute(select(store.now())).scalar_one()
        grouped = select(EVENT.c.source, EVENT.c.state, func.count().label("events"))
        standing = grouped.where(EVENT.c.state.in_((*OPEN, *NEEDS_PERSON)))
        states: dict[str, dict[State, int]] = {}
        for row in connection.execute(standing.group_by(EVENT.c.source, EVENT.c.state)):
            states.setdefault(row.source, {})[State(row.state)] = row.events
        late = (in_state(store, *UNFINISHED), EVENT.c.due_at <= store.now())
        count, first = connection.execute(select(func.count(), func.min(EVENT.c.due_at)).where(*late)).one()
        waits = max(0.0, (now - first).total_seconds()) if first else 0.0
        due = models.Due(count=count, seconds=waits)
        return models.Pending(at=now, states=states, oldest=_oldest(connection, now), due=due)


def _oldest(connection: Connection, now: datetime) -> models.Oldest | None:
    names = [name for name in models.Oldest.model_fields if name != "seconds"]
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
    waits = max(0.0, (now - row.received_at).total_seconds())
    return models.Oldest(**{name: getattr(row, name) for name in names}, seconds=waits)


def throughput(store: Store, minutes: int) -> models.Throughput:
    """Return counts for each of the last `minutes` minutes, the one under way last.

    Accepted counts by the time in the event's id, which the web process that took it set; both others by the
    ledger's clock. An event that runs again later is done in its last minute only.
    """
    with store.read() as connection:
        now = connection.execute(select(store.now())).scalar_one()
        starts = [now.replace(second=0, microsecond=0) - MINUTE * back for back in range(minutes)][::-1]
        ids = [(number, first_id(start), first_id(start + MINUTE)) for number, start in enumerate(starts)]
        times = [(number, start, start + MINUTE) for number, start in enumerate(starts)]
        minute, total = COUNTER.c.minute, func.sum(COUNTER.c.count)
        counted = select(minute, total).where(DUPLICATES, minute >= starts[0]).group_by(minute)
        counts = {
            "accepted": _count_between(connection, EVENT.c.id, ids),
            "done": _count_between(connection, EVENT.c.finished_at, times, in_state(store, State.DONE)),
        }
        duplicates = {at: int(count) for at, count in connection.execute(counted)}
    counts["duplicates"] = [duplicates.get(start, 0) for start in starts]
    return models.Throughput(**{"from": starts[0]}, minutes=minutes, **counts)


def _count_between(
    connection: Connection, place: ColumnElement[Any], bounds: Sequence[Any], *also: ColumnElement[bool]
) -> list[int]:
    """Count the events of each `(number, low, high)`; the index of `place` is searched once for each."""
    columns = column("number", Integer()), column("low", place.type), column("high", place.type)
    minute = values(*columns, name="minute").data(bounds).cte("minute")
    within = and_(place >= minute.c.low, place < minute.c.high, *also)
    counted = select(func.count()).select_from(EVENT).where(within).scalar_subquery()
    return [row[1] for row in connection.execute(select(minute.c.number, counted).order_by(minute.c.number))]


def flow(store: Store, minutes: int) -> dict[str, models.Flow]:
    """Return what each source with events or rejections got and did in the last `minutes` minutes.

    It counts as `throughput` does.
    """
    with store.read() as connection:
        since = connection.execute(select(store.now())).scalar_one() - MINUTE * minutes
        found: dict[str, models.Flow] = defaultdict(models.Flow)
        # Counted for each source by itself: its index begins with the source.
        known = sources().subquery()
        mine = and_(EVENT.c.source == known.c.source, EVENT.c.id >= first_id(since))
        accepted = select(func.count()).select_from(EVENT).where(mine).scalar_subquery()
        for source, count in connection.execute(select(known.c.source, accepted)):
            found[source].accepted = int(count)
        again = select(COUNTER.c.name, func.sum(COUNTER.c.count)).group_by(COUNTER.c.name)
        recent = again.where(DUPLICATES, COUNTER.c.minute >= since)
        for source, count in connection.execute(recent):
            found[source].duplicates = int(count)
        finished = and_(in_state(store, State.DONE), EVENT.c.finished_at >= since)
        done = select(EVENT.c.source, func.count()).where(finished).group_by(EVENT.c.source)
        for source, count in connection.execute(done):
            found[source].done = int(count)
        refused = select(COUNTER.c.name, COUNTER.c.what, func.sum(COUNTER.c.count))
        lately = refused.where(*REJECTION_MINUTES, COUNTER.c.minute >= since)
        for source, reason, count in connection.execute(lately.group_by(COUNTER.c.name, COUNTER.c.what)):
            found[source].rejections[reason] = int(count)
    return dict(found)


def workers(store: Store) -> list[models.WorkerHeartbeat]:
    """Return the workers of the last hour, the one seen latest first."""
    with store.read() as connection:
        chosen = select(WORKER, store.now().label("now")).order_by(WORKER.c.seen_at.desc())
        rows = connection.execute(chosen).all()
    return [
        models.WorkerHeartbeat(
            name=row.name,
            started_at=row.started_at,
            seen_at=row.seen_at,
            silent_seconds=max(0.0, (row.now - row.seen_at).total_seconds()),
        )
        for row in rows
    ]


@dataclass(frozen=True)
class LedgerFigures:
    """The ledger at one moment, for /metrics. Seconds are 0 where nothing waits."""

    totals: list[Total]
    states: dict[str, dict[State, int]]
    """Events that are not finished, parked or dead, by source and state: no row of a done one is read."""
    oldest_unfinished: float
    due: int
    longest_due: float
    parked_calls: dict[str, int]
    """By API."""
    workers: int


def figures(store: Store) -> LedgerFigures:
    """Return totals, which only grow, and how things stand; cheap at any size. Raises LedgerUnavailable."""
    with store.read() as connection:
        joined = store.joined(connection)
        standing = pending(joined)
        parked = select(CALL.c.api, func.count()).where(CALL.c.state == CallState.PARKED).group_by(CALL.c.api)
        return LedgerFigures(
            totals=totals(connection),
            states=standing.states,
            oldest_unfinished=standing.oldest.seconds if standing.oldest else 0.0,
            due=standing.due.count,
            longest_due=standing.due.seconds,
            parked_calls={str(api): int(count) for api, count in connection.execute(parked)},
            workers=sum(worker.silent_seconds < PRESENT for worker in workers(joined)),
        )
