"""What a second delivery of an event leaves behind: counts, the last 20, conflicting bodies, a revival."""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Row, and_, case, func, null, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from receiver.ledger.models import CONFLICT, DUPLICATE, EVENT
from receiver.ledger.states import Move, State, enters
from receiver.ledger.store import Store

RING = 20
"""Duplicates of one event that are kept with time and address; older ones are only counted."""

CONFLICTS_KEPT = 10
"""Other bodies kept beside one event: enough to see a pattern, too few to fill a disk with."""

REVIVAL_PAUSE = timedelta(hours=1)
"""A dead event is revived by a new delivery at most this often, or a provider's retries would spin it."""


class Body(Protocol):
    """The part of a delivery that a conflict keeps."""

    @property
    def body_hash(self) -> str: ...  # noqa: D102
    @property
    def body(self) -> bytes: ...  # noqa: D102
    @property
    def headers(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def content_type(self) -> str | None: ...  # noqa: D102


def note_duplicate(
    store: Store, connection: Connection, key: tuple[str, str], address: str | None
) -> Row[Any]:
    """Count a duplicate of a known event, revive the event if it is dead, and return its row."""
    now = store.now()
    change = {
        "duplicates": EVENT.c.duplicates + 1,
        "first_duplicate_at": func.coalesce(EVENT.c.first_duplicate_at, now),
        "last_duplicate_at": now,
    }
    statement = (
        update(EVENT)
        .where(EVENT.c.source == key[0], EVENT.c.event_id == key[1])
        .values(**change, **_revival(store, now))
        .returning(
            EVENT.c.id,
            EVENT.c.event_id,
            EVENT.c.state,
            EVENT.c.body_hash,
            EVENT.c.duplicates,
            # Erased together with the body. Not as IS NULL: SQLite 3.40 returns false for that, always.
            func.length(EVENT.c.headers).label("headers"),
        )
    )
    row = connection.execute(statement).one()
    _remember(store, connection, row, address if row.headers else None)
    return row


def _revival(store: Store, now: ColumnElement[datetime]) -> dict[str, ColumnElement[Any]]:
    pause_over = or_(EVENT.c.revived_at.is_(None), EVENT.c.revived_at <= store.after(-REVIVAL_PAUSE))
    # A person's discard stands: no provider's retry undoes it. An erased body cannot be handled again.
    revives = and_(
        EVENT.c.state == State.DEAD, EVENT.c.discarded.is_(False), EVENT.c.body.is_not(None), pause_over
    )
    fresh: dict[str, Any] = {
        "state": enters(Move.REVIVE).value,
        "due_at": now,
        "revived_at": now,
        "finished_at": null(),
        "attempts": 0,
        "crashes": 0,
        "nudged_at": null(),
        "nudges": 0,
        "reason": "A new delivery revived it.",
    }
    return {name: case((revives, value), else_=EVENT.c[name]) for name, value in fresh.items()}


def _remember(store: Store, connection: Connection, row: Row[Any], address: str | None) -> None:
    insert = (sqlite if store.sqlite else postgresql).insert(DUPLICATE)
    values = {"event": row.id, "slot": (row.duplicates - 1) % RING, "at": store.now(), "address": address}
    connection.execute(
        insert.values(**values).on_conflict_do_update(
            index_elements=["event", "slot"],
            set_={"at": insert.excluded.at, "address": insert.excluded.address},
        )
    )


def note_conflict(store: Store, connection: Connection, event: UUID, other: Body) -> None:
    """Keep another body that came under this event's id, and count it; a body already kept is no news."""
    mine = CONFLICT.c.event == event
    if connection.execute(select(CONFLICT.c.at).where(mine, CONFLICT.c.body_hash == other.body_hash)).first():
        return
    kept = connection.execute(select(func.count()).select_from(CONFLICT).where(mine)).scalar_one()
    if kept < CONFLICTS_KEPT:
        connection.execute(
            CONFLICT.insert().values(
                event=event,
                body_hash=other.body_hash,
                at=store.now(),
                body=other.body,
                headers=json.dumps(dict(other.headers)),
                content_type=other.content_type,
            )
        )
    connection.execute(update(EVENT).where(EVENT.c.id == event).values(conflicts=EVENT.c.conflicts + 1))
