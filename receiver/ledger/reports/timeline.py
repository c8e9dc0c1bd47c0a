"""Reading the ledger: which events there are. The command line, /v1 and the dashboard all ask here."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, Select, func, select

from receiver.ledger.errors import UnknownEvent
from receiver.ledger.filter import EventFilter, conditions
from receiver.ledger.reports.call_timeline import calls_of
from receiver.ledger.reports.models import PAGE_MAX, SHOWN, Page, event_json, paged, read_cursor
from receiver.ledger.reports.next_step import deciding, outlook
from receiver.ledger.store import Store
from receiver.ledger.tables import ACTION, ATTEMPT, CONFLICT, DUPLICATE, EVENT
from receiver.ledger.text import rfc3339


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


# The whole story of one event: what came, what was tried, what people did, what is next.


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


# What a provider sent, as it is stored: the exact body and the kept headers.


@dataclass(frozen=True)
class Original:
    """An event as it was sent. `body` is None once its payload is erased."""

    source: str
    event_id: str
    content_type: str | None
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(repr=False)


def original(store: Store, event: UUID) -> Original:
    """Return what is stored of an event, byte for byte; raises UnknownEvent."""
    columns = EVENT.c.source, EVENT.c.event_id, EVENT.c.content_type, EVENT.c.headers, EVENT.c.body
    with store.read() as connection:
        row = connection.execute(select(*columns).where(EVENT.c.id == event)).first()
    if row is None:
        raise UnknownEvent(f"No event {event} is in the ledger.")
    return Original(row.source, row.event_id, row.content_type, json.loads(row.headers or "{}"), row.body)


# Reading the bodies that came under a known id, so that a person can compare them.


def conflicts(store: Store, event: UUID) -> dict[str, Any]:
    """Return an event's conflicting bodies, newest first, ready for JSON; raises UnknownEvent.

    `{"data": [{body_hash, at, size, content_type, promoted_to, headers}, ...], "next": null}`, each with its
    bytes under `body`, still bytes: every edge writes them its own way.
    """
    mine = select(CONFLICT).where(CONFLICT.c.event == event)
    with store.read() as connection:
        if connection.execute(select(EVENT.c.id).where(EVENT.c.id == event)).first() is None:
            raise UnknownEvent(f"No event {event} is in the ledger.")
        rows = connection.execute(mine.order_by(CONFLICT.c.at.desc(), CONFLICT.c.body_hash)).all()
    return {"data": [_shown(row) for row in rows], "next": None}


def _shown(row: Row[Any]) -> dict[str, Any]:
    return {
        "body_hash": row.body_hash,
        "at": rfc3339(row.at),
        "size": len(row.body),
        "content_type": row.content_type,
        "promoted_to": str(row.promoted_to) if row.promoted_to else None,
        "headers": json.loads(row.headers),
        "body": row.body,
    }
