"""Idempotency keys in the ledger's database: one row a key, a lease with a fencing token while it runs."""

import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Index, Row, Text, and_, delete, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Field, SQLModel

from receiver.ledger.store import Store
from receiver.ledger.tables import table
from receiver.ledger.text import uuid7

PRUNE_BATCH = 1000


class IdempotencyKey(SQLModel, table=True):
    """One key within its scope. `variant` is the fingerprint where another body is another request."""

    __tablename__ = "idempotency_key"
    __table_args__ = (
        Index("idempotency_key_once", "policy", "scope", "key", "variant", unique=True),
        Index("idempotency_key_life", "expires_at"),
    )

    id: UUID = Field(primary_key=True)
    policy: str = Field(max_length=64)
    scope: str = Field(max_length=64)
    key: str = Field(sa_type=Text)
    variant: str = Field(max_length=64)
    fingerprint: str = Field(max_length=64)
    token: int = 1
    lease_until: datetime | None = None
    first_at: datetime
    expires_at: datetime
    status: int | None = None
    headers: str | None = Field(default=None, sa_type=Text)
    body: bytes | None = None


KEY = table(IdempotencyKey)


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
        """Return what the key's uniqueness includes beyond policy, scope and key."""
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
    """Claim a key, or say why not: the INSERT decides who runs. Raises LedgerUnavailable.

    A look goes first, at what nobody can change by running: answers in their life and live leases. It takes
    no lock, so on SQLite, too, a duplicate learns about a running request without waiting for its end.
    """
    while True:
        opened = _look(store, slot) or _claim(store, slot, lease)
        if opened:
            return opened


def finish_key(connection: Connection, held: Held, answer: StoredAnswer) -> bool:
    """Store the answer in the caller's transaction; False when someone else holds the key: roll back."""
    change = {
        "status": answer.status,
        "headers": json.dumps(answer.headers),
        "body": answer.body,
        "lease_until": None,
    }
    return bool(connection.execute(update(KEY).where(*_mine(held)).values(**change)).rowcount)


def drop_key(connection: Connection, held: Held) -> bool:
    """Forget a key whose answer is not stored, so that the next request runs; False when it was taken."""
    return bool(connection.execute(delete(KEY).where(*_mine(held))).rowcount)


def prune_keys(store: Store) -> int:
    """Delete the keys whose life is over and that nobody runs, 1,000 a transaction; returns how many."""
    total = 0
    while True:
        pruned = _prune_batch(store)
        total += pruned
        if pruned < PRUNE_BATCH:
            return total


def _prune_batch(store: Store) -> int:
    over = and_(KEY.c.expires_at <= store.now(), _unheld(store))
    chosen = select(KEY.c.id).where(over).limit(PRUNE_BATCH).with_for_update(skip_locked=True)
    with store.write() as connection:
        return connection.execute(delete(KEY).where(KEY.c.id.in_(chosen))).rowcount


def _look(store: Store, slot: Slot) -> Opened | None:
    alive = (KEY.c.expires_at > store.now()).label("alive")
    leased = (KEY.c.lease_until > store.now()).label("leased")
    with store.read() as connection:
        row = connection.execute(select(KEY, alive, leased).where(*_same(slot))).first()
    settled = row is not None and (row.leased or (row.alive and row.status is not None))
    return _describe(row, slot) if row is not None and settled else None


def _claim(store: Store, slot: Slot, lease: timedelta) -> Opened | None:
    """Insert the key or take it over; None when the row that was in the way is gone: try again."""
    with store.write() as connection:
        held = _insert(store, connection, slot, lease)
        if held:
            return held
        row = connection.execute(select(KEY).where(*_same(slot)).with_for_update()).first()
        if row is None:
            return None
        return _take_over(store, connection, row, slot, lease) or _describe(row, slot)


def _insert(store: Store, connection: Connection, slot: Slot, lease: timedelta) -> Held | None:
    values = {
        "id": uuid7(),
        "policy": slot.policy,
        "scope": slot.scope,
        "key": slot.key,
        "variant": slot.variant,
        "token": 1,
        **_fresh(store, slot, lease),
    }
    insert = (sqlite if store.sqlite else postgresql).insert(KEY).values(**values)
    row = connection.execute(insert.on_conflict_do_nothing().returning(KEY.c.id)).first()
    return Held(row.id, 1) if row else None


def _fresh(store: Store, slot: Slot, lease: timedelta) -> dict[str, Any]:
    return {
        "fingerprint": slot.fingerprint,
        "lease_until": store.after(lease),
        "first_at": store.now(),
        "expires_at": store.after(slot.life),
        "status": None,
        "headers": None,
        "body": None,
    }


def _take_over(
    store: Store, connection: Connection, row: Row[Any], slot: Slot, lease: timedelta
) -> Held | None:
    """Run a key again whose life is over, or whose holder died: the same request only, in that case."""
    expired = and_(KEY.c.expires_at <= store.now(), _unheld(store))
    deserted = and_(KEY.c.lease_until <= store.now(), KEY.c.fingerprint == slot.fingerprint)
    statement = (
        update(KEY)
        .where(KEY.c.id == row.id, KEY.c.token == row.token, or_(expired, deserted))
        .values(token=KEY.c.token + 1, **_fresh(store, slot, lease))
        .returning(KEY.c.token)
    )
    taken = connection.execute(statement).first()
    return Held(row.id, taken.token) if taken else None


def _describe(row: Row[Any], slot: Slot) -> Opened:
    if row.fingerprint != slot.fingerprint:
        return Mismatch()
    if row.status is None:
        return Running()
    headers: list[tuple[str, str]] = json.loads(row.headers)
    return StoredAnswer(row.status, tuple((name, value) for name, value in headers), row.body)


def _unheld(store: Store) -> Any:
    return or_(KEY.c.lease_until.is_(None), KEY.c.lease_until <= store.now())


def _same(slot: Slot) -> tuple[Any, ...]:
    parts = {
        "policy": slot.policy,
        "scope": slot.scope,
        "key": slot.key,
        "variant": slot.variant,
    }
    return tuple(KEY.c[name] == value for name, value in parts.items())


def _mine(held: Held) -> tuple[Any, ...]:
    return KEY.c.id == held.id, KEY.c.token == held.token, KEY.c.status.is_(None)
