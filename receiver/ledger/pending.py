"""What is not finished, or waits for a person: read from the rows in those states alone."""

from typing import Any

from sqlalchemy import Connection, func, select

from receiver.ledger.claims import in_state
from receiver.ledger.models import EVENT
from receiver.ledger.queries import rfc3339
from receiver.ledger.states import State
from receiver.ledger.stats import OPEN
from receiver.ledger.store import Store

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
