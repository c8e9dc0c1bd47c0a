"""What a handler sees of an event."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any
from uuid import UUID

from receiver.ledger.lease import Claim
from receiver.payload import parse_payload


@dataclass(frozen=True)
class Event:
    """One first-seen event. `raw` is the exact body; `attempt` counts from 1, `generation` from 0."""

    source: str
    id: UUID
    event_id: str
    type: str
    created_at: datetime | None
    received_at: datetime
    raw: bytes = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    attempt: int
    generation: int

    @cached_property
    def data(self) -> Any:
        """Return the whole parsed payload, JSON or form; raises ValueError where it is neither."""
        return parse_payload(self.raw, self.headers.get("Content-Type"))


def event_of(held: Claim) -> Event:
    """Build the handler's view of a claimed event."""
    headers = json.loads(held.headers)
    if held.content_type:
        headers["Content-Type"] = held.content_type
    return Event(
        source=held.source,
        id=held.event,
        event_id=held.event_id,
        type=held.type,
        created_at=held.created_at,
        received_at=held.received_at,
        raw=held.body or b"",
        headers=headers,
        attempt=held.attempt,
        generation=held.generation,
    )
