"""What a provider sent, as it is stored: the exact body and the kept headers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy import select

from receiver.ledger.errors import UnknownEvent
from receiver.ledger.models import EVENT
from receiver.ledger.store import Store


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
