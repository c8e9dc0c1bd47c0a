"""Idempotency keys in the ledger's database: one row a key, a lease with a fencing token while it runs.

`open_key` claims a key or says why not. `finish_key` stores the answer and `drop_key` forgets the key, each
in the transaction of the request's own work. `prune_keys` deletes what is past its life.
"""

import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, and_, delete, or_, select, update

from receiver.ledger.store import LONG, Store
from receiver.ledger.tables import KEY, insert_for
from receiver.ledger.text import uuid7

# Rows of one deleting transaction: on SQLite, nobody else writes meanwhile.
PRUNE_BATCH = 1000


@dataclass(frozen=True)
class Slot:
    """What a request claims: its key within a policy and scope, and the fingerprint of the request."""

    policy: str
    scope: str
    key: str = field(repr=False)
    fingerprint: str
    life: timedelta
    separate: bool = False
    """Whether another fingerprint is another request, rather than a misuse of the key."""

    @property
    def variant(self) -> str:
        """What the key's uniqueness includes beyond policy, scope and key."""
        return self.fingerprint if self.separate else ""


@dataclass(frozen=True)
class StoredAnswer:
    """A response as it is stored and replayed, byte for byte."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes = field(repr=False)


@dataclass(frozen=True)
class Held:
    """The key is ours to run, under this fencing token."""

    id: UUID
    token: int


@dataclass(frozen=True)
class Running:
    """Another request with this key runs now."""


@dataclass(frozen=True)
class Mismatch:
    """The key was used for another request."""


Opened = Held | Running | Mismatch | StoredAnswer


def open_key(store: Store, slot: Slot, *, lease: timedelta) -> Opened:
    """Claim a key, or say why not: the INSERT decides which request runs. Raises LedgerUnavailable."""
    while True:
        opened = _look(store, slot) or _claim(store, slot, lease)
        if opened:
            return opened


def finish_key(connection: Connection, held: Held, answer: StoredAnswer) -> bool:
    """Store the answer in the caller's transaction; False when another request holds the key: roll back."""
    change = {
        "status": answer.status,
        "headers": json.dumps(answer.headers),
        "body": answer.body,
        "lease_until": None,
    }
    return bool(connection.execute(update(KEY).where(_is_held(held)).values(**change)).rowcount)


def drop_key(connection: Connection, held: Held) -> bool:
    """Forget a key whose answer is not stored, so that the next request runs; False when it was taken."""
    return bool(connection.execute(delete(KEY).where(_is_held(held))).rowcount)


def prune_keys(store: Store) -> int:
    """Delete the keys whose life is over and that no request runs; return how many."""
    over = select(KEY.c.id).where(_is_over(store)).limit(PRUNE_BATCH).with_for_update(skip_locked=True)
    total = 0
    while True:
        with store.write(limit=LONG) as connection:
            pruned = connection.execute(delete(KEY).where(KEY.c.id.in_(over))).rowcount
        total += pruned
        if pruned < PRUNE_BATCH:
            return total


def _look(store: Store, slot: Slot) -> Opened | None:
    """Return what no request can change by running: an answer in its life, or a live lease."""
    # Without a lock: on SQLite, too, a duplicate need not wait for the end of the request that runs.
    alive = (KEY.c.expires_at > store.now()).label("alive")
    leased = (KEY.c.lease_until > store.now()).label("leased")
    with store.read() as connection:
        row = connection.execute(select(KEY, alive, leased).where(_is_same(slot))).first()
    if row is None or not (row.leased or (row.alive and row.status is not None)):
        return None
    return _describe(row, slot)


def _claim(store: Store, slot: Slot, lease: timedelta) -> Opened | None:
    """Insert the key or take it over; None when the row that was in the way is gone: try again."""
    names = {"policy": slot.policy, "scope": slot.scope, "key": slot.key, "variant": slot.variant}
    with store.write() as connection:
        fresh = {
            "fingerprint": slot.fingerprint,
            "lease_until": store.after(lease),
            "first_at": store.now(),
            "expires_at": store.after(slot.life),
            "status": None,
            "headers": None,
            "body": None,
        }
        insert = insert_for(store, KEY).values(id=uuid7(), token=1, **names, **fresh)
        made = connection.execute(insert.on_conflict_do_nothing().returning(KEY.c.id)).first()
        if made:
            return Held(made.id, 1)
        row = connection.execute(select(KEY).where(_is_same(slot)).with_for_update()).first()
        if row is None:
            return None
        # Its life is over, or the request that held it died: then only the same request may run again.
        deserted = and_(KEY.c.lease_until <= store.now(), KEY.c.fingerprint == slot.fingerprint)
        free = (KEY.c.id == row.id, KEY.c.token == row.token, or_(_is_over(store), deserted))
        change = update(KEY).where(*free).values(token=KEY.c.token + 1, **fresh).returning(KEY.c.token)
        taken = connection.execute(change).first()
        return Held(row.id, taken.token) if taken else _describe(row, slot)


def _describe(row: Any, slot: Slot) -> Opened:
    if row.fingerprint != slot.fingerprint:
        return Mismatch()
    if row.status is None:
        return Running()
    return StoredAnswer(row.status, tuple((name, value) for name, value in json.loads(row.headers)), row.body)


def _is_same(slot: Slot) -> ColumnElement[bool]:
    return and_(
        KEY.c.policy == slot.policy,
        KEY.c.scope == slot.scope,
        KEY.c.key == slot.key,
        KEY.c.variant == slot.variant,
    )


def _is_held(held: Held) -> ColumnElement[bool]:
    return and_(KEY.c.id == held.id, KEY.c.token == held.token, KEY.c.status.is_(None))


def _is_over(store: Store) -> ColumnElement[bool]:
    unheld = or_(KEY.c.lease_until.is_(None), KEY.c.lease_until <= store.now())
    return and_(KEY.c.expires_at <= store.now(), unheld)
