"""What several shapes of `/v1` are made of."""

from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from receiver.ledger.states import State


class Shape(BaseModel):
    """An object with these members and no others."""

    model_config = ConfigDict(extra="forbid")


class Event(Shape):
    """An event as lists show it."""

    id: UUID
    source: str
    event_id: str
    type: str
    state: State
    attempts: int
    generation: int
    received_at: datetime
    due_at: datetime
    reason: str | None
    duplicates: int
    conflicts: int
