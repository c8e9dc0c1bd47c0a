"""Events: which there are, and all that happened to one of them.

`list_events` and `find_event` look events up, and `story` returns the timeline of one. `original` and
`other_bodies` return stored bytes, for the redaction to say what of them may be shown.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Select, func, select

from receiver.ledger.errors import UnknownEvent
from receiver.ledger.filter import EventFilter, conditions
from receiver.ledger.reports import models
from receiver.ledger.reports.call_timeline import calls_of
from receiver.ledger.reports.next_step import deciding, outlook
from receiver.ledger.store import Store
from receiver.ledger.tables import ACTION, ATTEMPT, CONFLICT, DUPLICATE, EVENT
from receiver.ledger.text import readable

# The latest attempts of an event; a handler that fails for weeks must not make its story unreadable.
ATTEMPTS_SHOWN = 200


@dataclass(frozen=True)
class Original:
    """An event as it was received. `body` is None once its payload is erased."""

    source: str
    event_id: str
    content_type: str | None
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(repr=False)


@dataclass(frozen=True)
class OtherBody(Original):
    """A conflicting body: another one that was received under an event's id."""

    conflict: models.Conflict
    body: bytes = field(repr=False)

    def in_full(self, shown: bytes) -> models.ConflictInFull:
        """Return the conflict with `shown`, the part of its bytes that may be seen."""
        return models.ConflictInFull(**dict(self.conflict), headers=dict(self.headers), **readable(shown))


def list_events(
    store: Store, which: EventFilter, *, limit: int = 50, cursor: str | None = None
) -> models.EventsView:
    """Return one page of events, newest first. Events that arrive meanwhile shift no page.

    Raises BadCursor for a cursor that was not made here.
    """
    size = max(1, min(limit, models.PAGE_MAX))
    columns = [EVENT.c[name] for name in models.EventView.model_fields]
    statement = select(*columns).where(*conditions(store, which)).order_by(EVENT.c.id.desc())
    if cursor:
        statement = statement.where(EVENT.c.id < models.read_cursor(cursor))
    with store.read() as connection:
        rows = connection.execute(statement.limit(size + 1)).all()
    data = [models.EventView.model_validate(row, from_attributes=True) for row in rows[:size]]
    return models.EventsView(data=data, next=models.next_cursor(rows, size))


def find_event(store: Store, source: str, event_id: str) -> UUID:
    """Return the ledger's id of an event; raises UnknownEvent."""
    with store.read() as connection:
        same = conditions(store, EventFilter(source=source, event_id=event_id))
        found: UUID | None = connection.execute(select(EVENT.c.id).where(*same)).scalar()
    if found is None:
        raise UnknownEvent(f"No event {event_id} of {source} is in the ledger.")
    return found


def story(store: Store, event: UUID) -> models.Story:
    """Return an event's whole story: attempts and calls in their order, other lists newest first.

    Raises UnknownEvent.
    """
    with store.read() as connection:
        found = select(EVENT, store.now().label("now")).where(EVENT.c.id == event)
        row = connection.execute(found).first()
        if row is None:
            raise UnknownEvent(f"No event {event} is in the ledger.")
        actions = _select(ACTION, models.Action).where(ACTION.c.event == event)
        attempts = _select(ATTEMPT, models.Attempt).where(ATTEMPT.c.event == event)
        duplicates = _select(DUPLICATE, models.Duplicate).where(DUPLICATE.c.event == event)
        size = func.length(CONFLICT.c.body).label("size")
        columns = [CONFLICT.c.get(name, size) for name in models.Conflict.model_fields]
        conflicts = select(*columns).where(CONFLICT.c.event == event)
        latest = attempts.order_by(ATTEMPT.c.claim.desc()).limit(ATTEMPTS_SHOWN)
        columns_of_event = {
            name: getattr(row, name) for name in models.EventInFull.model_fields if name != "size"
        }
        return models.Story(
            event=models.EventInFull(**columns_of_event, size=None if row.body is None else len(row.body)),
            duplicates=models.Duplicates(
                count=row.duplicates,
                first=row.first_duplicate_at,
                last=row.last_duplicate_at,
                latest=_all(connection, models.Duplicate, duplicates.order_by(DUPLICATE.c.at.desc())),
            ),
            conflicts=_all(connection, models.Conflict, conflicts.order_by(CONFLICT.c.at.desc())),
            attempts=_all(connection, models.Attempt, latest)[::-1],
            actions=_all(connection, models.Action, actions.order_by(ACTION.c.at.desc(), ACTION.c.id.desc())),
            nudges=models.Nudges(count=row.nudges, last=row.nudged_at),
            calls=calls_of(connection, event),
            next=outlook(row, row.now, deciding(connection, row)),
        )


def original(store: Store, event: UUID) -> Original:
    """Return what is stored of an event, byte for byte; raises UnknownEvent."""
    columns = EVENT.c.source, EVENT.c.event_id, EVENT.c.content_type, EVENT.c.headers, EVENT.c.body
    with store.read() as connection:
        row = connection.execute(select(*columns).where(EVENT.c.id == event)).first()
    if row is None:
        raise UnknownEvent(f"No event {event} is in the ledger.")
    return Original(row.source, row.event_id, row.content_type, json.loads(row.headers or "{}"), row.body)


def other_bodies(store: Store, event: UUID) -> list[OtherBody]:
    """Return an event's conflicting bodies, newest first, or an empty list; raises UnknownEvent."""
    mine = select(CONFLICT, EVENT.c.source, EVENT.c.event_id).join(EVENT).where(CONFLICT.c.event == event)
    with store.read() as connection:
        # Asked by itself: an unknown event and one without conflicts both have no rows.
        if connection.execute(select(EVENT.c.id).where(EVENT.c.id == event)).first() is None:
            raise UnknownEvent(f"No event {event} is in the ledger.")
        rows = connection.execute(mine.order_by(CONFLICT.c.at.desc(), CONFLICT.c.body_hash)).all()
    return [
        OtherBody(
            source=row.source,
            event_id=row.event_id,
            content_type=row.content_type,
            headers=json.loads(row.headers),
            body=row.body,
            conflict=models.Conflict(
                body_hash=row.body_hash,
                at=row.at,
                size=len(row.body),
                content_type=row.content_type,
                promoted_to=row.promoted_to,
            ),
        )
        for row in rows
    ]


def _select(table: Any, shape: type[models.ShapeT]) -> Select[Any]:
    return select(*[table.c[name] for name in shape.model_fields])


def _all(connection: Connection, shape: type[models.ShapeT], statement: Select[Any]) -> list[models.ShapeT]:
    return [shape(**row) for row in connection.execute(statement).mappings()]
