"""Reading the bodies that came under a known id, so that a person can compare them."""

import json
from typing import Any
from uuid import UUID

from sqlalchemy import Row, select

from receiver.ledger.errors import UnknownEvent
from receiver.ledger.models import CONFLICT, EVENT
from receiver.ledger.queries import rfc3339
from receiver.ledger.store import Store


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
