"""Figures of the whole ledger, by source and by API."""

from collections import defaultdict
from typing import Any

from sqlalchemy import Connection, func, select

from receiver.ledger.calls.models import CALL
from receiver.ledger.calls.states import CallState
from receiver.ledger.models import EVENT, REJECTION
from receiver.ledger.queries import rfc3339
from receiver.ledger.states import State
from receiver.ledger.store import Store

OPEN = (State.RECEIVED, State.PROCESSING, State.WAITING)
"""States that an event leaves by itself."""


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
    grouped = select(REJECTION.c.source, REJECTION.c.reason, func.sum(REJECTION.c.count).label("refused"))
    for row in connection.execute(grouped.group_by(REJECTION.c.source, REJECTION.c.reason)):
        found[row.source]["rejections"][row.reason] = int(row.refused)


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
