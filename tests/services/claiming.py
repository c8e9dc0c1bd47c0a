"""Claiming one event by its id: a worker claims whatever is due, but a test is about one event."""

from datetime import timedelta
from uuid import UUID

from receiver.ledger.lease import Claim
from receiver.ledger.queue import claim_due, expire
from receiver.ledger.store import Store
from receiver.ledger.tables import EVENT


def claim(store: Store, event: UUID, *, lease: timedelta, worker: str) -> Claim | None:
    """Take expired leases back, then claim this event; None when it is not due."""
    expire(store)
    claimed = claim_due(store, limit=1, lease=lease, worker=worker, where=EVENT.c.id == event)
    return claimed[0] if claimed else None
