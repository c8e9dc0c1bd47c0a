"""The whole story of one event: what came, what was tried, what people did, what is next."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, Select, func, select

from receiver.ledger.calls.outlook import deciding
from receiver.ledger.calls.story import calls_of
from receiver.ledger.errors import UnknownEvent
from receiver.ledger.models import ACTION, ATTEMPT, CONFLICT, DUPLICATE, EVENT
from receiver.ledger.outlook import outlook
from receiver.ledger.queries import event_json, rfc3339
from receiver.ledger.store import Store

ATTEMPTS_SHOWN = 200
"""The latest attempts of an event; a handler that fails for weeks must not make its story unreadable."""


def story(store: Store, event: UUID) -> dict[str, Any]:
    """Return an event's story, ready for JSON; lists are newest first, but attempts and calls in their order.

    `{event, duplicates: {count, first, last, latest: [{at, address}]}, conflicts: [{body_hash, at, size,
    content_type, promoted_to}], attempts: [{number, generation, claim, started_at, ended_at, outcome, reason,
    error, worker}], actions: [{what, who, at, was, generation, call}], nudges: {count, last}, calls (see
    `calls_of`), next}`. Raises UnknownEvent.
    """
    with store.read() as connection:
        found = select(EVENT, store.now().label("now")).where(EVENT.c.id == event)
        row = connection.execute(found).first()
        if row is None:
            raise UnknownEvent(f"No event {event} is in the ledger.")
        return {
            "event": _event(row),
            "duplicates": _duplicates(connection, row),
            "conflicts": _conflicts(connection, row),
            "attempts": _attempts(connection, row),
            "actions": _actions(connection, row),
            "nudges": {"count": row.nudges, "last": rfc3339(row.nudged_at)},
            "calls": calls_of(connection, event),
            "next": outlook(row, row.now, deciding(connection, row)),
        }


def _event(row: Row[Any]) -> dict[str, Any]:
    times = ("created_at", "finished_at", "revived_at", "lease_until")
    plain = (
        "crashes",
        "discarded",
        "suspected_replay",
        "calls_changed",
        "address",
        "content_type",
        "body_hash",
    )
    return {
        **event_json(row),
        **{name: rfc3339(getattr(row, name)) for name in times},
        **{name: getattr(row, name) for name in plain},
        "parked_call": _plain(row.parked_call),
        "size": None if row.body is None else len(row.body),
    }


def _duplicates(connection: Connection, row: Row[Any]) -> dict[str, Any]:
    mine = select(DUPLICATE.c.at, DUPLICATE.c.address).where(DUPLICATE.c.event == row.id)
    return {
        "count": row.duplicates,
        "first": rfc3339(row.first_duplicate_at),
        "last": rfc3339(row.last_duplicate_at),
        "latest": _rows(connection, mine.order_by(DUPLICATE.c.at.desc())),
    }


def _conflicts(connection: Connection, row: Row[Any]) -> list[dict[str, Any]]:
    size = func.length(CONFLICT.c.body).label("size")
    columns = CONFLICT.c.body_hash, CONFLICT.c.at, size, CONFLICT.c.content_type, CONFLICT.c.promoted_to
    mine = select(*columns).where(CONFLICT.c.event == row.id)
    return _rows(connection, mine.order_by(CONFLICT.c.at.desc()))


def _attempts(connection: Connection, row: Row[Any]) -> list[dict[str, Any]]:
    names = (
        "number",
        "generation",
        "claim",
        "started_at",
        "ended_at",
        "outcome",
        "reason",
        "error",
        "worker",
    )
    mine = select(*[ATTEMPT.c[name] for name in names]).where(ATTEMPT.c.event == row.id)
    return _rows(connection, mine.order_by(ATTEMPT.c.claim.desc()).limit(ATTEMPTS_SHOWN))[::-1]


def _actions(connection: Connection, row: Row[Any]) -> list[dict[str, Any]]:
    names = ("what", "who", "at", "was", "generation", "call")
    mine = select(*[ACTION.c[name] for name in names]).where(ACTION.c.event == row.id)
    return _rows(connection, mine.order_by(ACTION.c.at.desc(), ACTION.c.id.desc()))


def _rows(connection: Connection, statement: Select[Any]) -> list[dict[str, Any]]:
    rows = connection.execute(statement).mappings()
    return [{name: _plain(value) for name, value in row.items()} for row in rows]


def _plain(value: Any) -> Any:
    match value:
        case datetime():
            return rfc3339(value)
        case UUID():
            return str(value)
        case _:
            return value
