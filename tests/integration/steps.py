"""Steps that the ledger's tests share, so that each test states only its subject."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, Table, bindparam, event, func, select, text, update

from receiver.ledger.intake import Delivery, Verdict, record
from receiver.ledger.lease import Claim, Outcome
from receiver.ledger.queue import settle
from receiver.ledger.states import Move
from receiver.ledger.store import Store
from receiver.ledger.tables import ATTEMPT, CONFLICT, DUPLICATE, EVENT
from tests.services.claiming import claim

LEASE = timedelta(seconds=60)
SWEEP = timedelta(seconds=5)
ONLY_POSTGRES = {"argnames": "store", "argvalues": ["postgres"], "indirect": True}
ONLY_SQLITE = {"argnames": "store", "argvalues": ["sqlite"], "indirect": True}


def delivery(event_id: str = "evt_1", body: bytes = b"{}", **change: Any) -> Delivery:
    """Return a delivery of a Stripe event."""
    return Delivery(**({"source": "stripe", "type": "invoice.paid"} | change), event_id=event_id, body=body)


def deliver(store: Store, event_id: str = "evt_1", body: bytes = b"{}", **change: Any) -> Verdict:
    """Record one delivery."""
    return record(store, [delivery(event_id, body, **change)])[0]


def deliver_all(store: Store, count: int, **change: Any) -> list[UUID]:
    """Record this many events in one batch; return their ids in order."""
    return [v.event for v in record(store, [delivery(f"evt_{n}", **change) for n in range(count)])]


def row(store: Store, event: UUID) -> Row[Any]:
    """Return an event's row; fail if it was deleted."""
    with store.read() as connection:
        return connection.execute(select(EVENT).where(EVENT.c.id == event)).one()


def state(store: Store, event: UUID) -> str:
    """Return an event's state."""
    return str(row(store, event).state)


def rows_of(store: Store, table: Table, event: UUID) -> list[Row[Any]]:
    """Return the rows of another table that belong to an event, in the order of their primary key."""
    with store.read() as connection:
        chosen = select(table).where(table.c.event == event).order_by(*table.primary_key)
        return list(connection.execute(chosen))


def attempts(store: Store, event: UUID) -> list[Row[Any]]:
    """Return an event's attempts, oldest claim first."""
    return rows_of(store, ATTEMPT, event)


def conflicts(store: Store, event: UUID) -> list[Row[Any]]:
    """Return the conflicting bodies that are stored with an event."""
    return rows_of(store, CONFLICT, event)


def duplicates(store: Store, event: UUID) -> list[Row[Any]]:
    """Return the stored duplicates of an event, by slot."""
    return rows_of(store, DUPLICATE, event)


def count(store: Store, *where: Any) -> int:
    """Return how many events meet these conditions."""
    with store.read() as connection:
        return connection.execute(select(func.count()).select_from(EVENT).where(*where)).scalar_one()


def change(store: Store, event: UUID, **values: Any) -> None:
    """Set columns of an event directly, where reaching that state would take many steps."""
    with store.write() as connection:
        connection.execute(update(EVENT).where(EVENT.c.id == event).values(**values))


def take(store: Store, event: UUID, worker: str = "worker-1", lease: timedelta = LEASE) -> Claim:
    """Claim an event; fail if it cannot be claimed."""
    held = claim(store, event, lease=lease, worker=worker)
    assert held is not None, f"event {event} cannot be claimed: {row(store, event)}"
    return held


def end(store: Store, event: UUID, move: Move = Move.FINISH, **outcome: Any) -> None:
    """Claim an event and settle it with this move."""
    assert settle(store, [(take(store, event), Outcome(move, **outcome))]), "the claim was lost"


def crowd(store: Store, count: int, prefix: str = "crowd", **values: Any) -> None:
    """Insert many events in one statement: waiting and due for a minute, unless `values` differ."""
    model = deliver(store, f"{prefix}_model").event
    change(store, model, **{"state": "waiting", "due_at": store.after(timedelta(minutes=-1))} | values)
    some_id = "lower(hex(randomblob(16)))" if store.sqlite else "gen_random_uuid()"
    new = {"id": some_id, "event_id": f"'{prefix}_' || n", "body_hash": f"'{prefix}_' || n"}
    names = [column.name for column in EVENT.c]
    columns, chosen = ", ".join(names), ", ".join(new.get(name, name) for name in names)
    query = f"""WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :last)
        INSERT INTO event ({columns}) SELECT {chosen} FROM event, numbers WHERE event.id = :model"""
    with store.write(limit=None) as connection:
        bound = text(query).bindparams(bindparam("model", model, EVENT.c.id.type), last=count - 1)
        connection.execute(bound)


def later(store: Store, **span: float) -> None:
    """Move the ledger's clock forward."""
    store.shift += timedelta(**span)


@contextmanager
def hooked(store: Store, name: str, hook: Callable[..., object]) -> Iterator[None]:
    """Listen to one of SQLAlchemy's events inside the block."""
    event.listen(store.engine, name, hook)
    try:
        yield
    finally:
        event.remove(store.engine, name, hook)


@contextmanager
def statements(store: Store) -> Iterator[list[str]]:
    """Collect the SQL statements that run inside the block."""
    seen: list[str] = []
    with hooked(store, "before_cursor_execute", lambda *given: seen.append(given[2])):
        yield seen


@contextmanager
def worst_plan(store: Store) -> Iterator[None]:
    """Forbid PostgreSQL every plan but those that repeat a subquery for each row."""

    def worst(connection: Connection) -> None:
        for kind in ("hashjoin", "hashagg", "mergejoin", "material", "sort"):
            connection.execute(text(f"SET LOCAL enable_{kind} = off"))

    with hooked(store, "begin", worst):
        yield
