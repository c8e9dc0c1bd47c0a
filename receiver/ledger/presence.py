"""Which workers live: each one says so at every sweep, and is forgotten an hour after its last word."""

from datetime import timedelta
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite

from receiver.ledger.models import WORKER
from receiver.ledger.queries import rfc3339
from receiver.ledger.store import Store
from receiver.ledger.texts import clipped

FORGOTTEN_AFTER = timedelta(hours=1)


def note_worker(store: Store, name: str) -> None:
    """Write down that a worker is here now."""
    insert = (sqlite if store.sqlite else postgresql).insert(WORKER)
    here = insert.values(name=clipped(name), started_at=store.now(), seen_at=store.now())
    with store.write() as connection:
        seen = {"seen_at": insert.excluded.seen_at}
        connection.execute(here.on_conflict_do_update(index_elements=["name"], set_=seen))
        connection.execute(delete(WORKER).where(WORKER.c.seen_at < store.after(-FORGOTTEN_AFTER)))


def forget_worker(store: Store, name: str) -> None:
    """Write down that a worker has stopped in order."""
    with store.write() as connection:
        connection.execute(delete(WORKER).where(WORKER.c.name == clipped(name)))


def workers(store: Store) -> list[dict[str, Any]]:
    """Return the workers of the last hour, the one seen latest first, ready for JSON.

    `[{name, started_at, seen_at, silent_seconds}]`.
    """
    with store.read() as connection:
        chosen = select(WORKER, store.now().label("now")).order_by(WORKER.c.seen_at.desc())
        rows = connection.execute(chosen).all()
    return [
        {
            "name": row.name,
            "started_at": rfc3339(row.started_at),
            "seen_at": rfc3339(row.seen_at),
            "silent_seconds": max(0.0, (row.now - row.seen_at).total_seconds()),
        }
        for row in rows
    ]
