"""A conflicting body, which came under a known id, becomes an event of its own when a person says so."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, select, update
from sqlalchemy.dialects import postgresql, sqlite

from receiver.ledger.errors import NotAllowed, UnknownEvent
from receiver.ledger.ids import uuid7
from receiver.ledger.models import ACTION, CONFLICT, EVENT
from receiver.ledger.states import State
from receiver.ledger.store import Store
from receiver.ledger.texts import TEXT_MAX, clipped

PROMOTE = "promote"
HASH_SHOWN = 12
"""Characters of the body's hash in the new event's id: enough to tell ten bodies apart."""


@dataclass(frozen=True)
class Promoted:
    """The event that a conflicting body became; `created` is false when it had become one before."""

    event: UUID
    event_id: str
    created: bool


def promote(store: Store, event: UUID, body_hash: str, who: str) -> Promoted:
    """Turn a kept conflicting body into an event of its own, `<event id>#<start of the hash>`, due now.

    Done again it returns the same event. Raises UnknownEvent, or NotAllowed when no such body is kept.
    """
    with store.write() as connection:
        origin = connection.execute(select(EVENT).where(EVENT.c.id == event).with_for_update()).first()
        if origin is None:
            raise UnknownEvent(f"No event {event} is in the ledger.")
        mine = (CONFLICT.c.event == event, CONFLICT.c.body_hash == body_hash)
        kept = connection.execute(select(CONFLICT).where(*mine)).first()
        if kept is None:
            raise NotAllowed(
                f"Event {origin.event_id} keeps no conflicting body {body_hash}: only the first ten are kept,"
                " until its payload is erased."
            )
        done = _insert(store, connection, origin, kept)
        if done.created:
            connection.execute(update(CONFLICT).where(*mine).values(promoted_to=done.event))
            _note(store, connection, origin, who)
        return done


def _insert(store: Store, connection: Connection, origin: Row[Any], kept: Row[Any]) -> Promoted:
    suffix = f"#{kept.body_hash[:HASH_SHOWN]}"
    event_id = origin.event_id[: TEXT_MAX - len(suffix)] + suffix
    row = {"source": origin.source, "event_id": event_id, "type": origin.type, "state": State.RECEIVED}
    copied = {name: getattr(kept, name) for name in ("body_hash", "body", "headers", "content_type")}
    statement = (
        (sqlite if store.sqlite else postgresql)
        .insert(EVENT)
        .values(id=uuid7(), **row, **copied, received_at=store.now(), due_at=store.now())
        .on_conflict_do_nothing(index_elements=["source", "event_id"])
        .returning(EVENT.c.id)
    )
    created = connection.execute(statement).scalar()
    if created:
        return Promoted(created, event_id, created=True)
    same = (EVENT.c.source == origin.source, EVENT.c.event_id == event_id)
    there = connection.execute(select(EVENT.c.id).where(*same)).scalar_one()
    return Promoted(there, event_id, created=False)


def _note(store: Store, connection: Connection, origin: Row[Any], who: str) -> None:
    told = {"event": origin.id, "generation": origin.generation, "what": PROMOTE, "was": origin.state}
    connection.execute(ACTION.insert().values(id=uuid7(), **told, at=store.now(), who=clipped(who)))
