"""*Growth*: recording speed at a thousand, a hundred thousand and a million rows."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import psycopg
from sqlalchemy import text

from receiver.ledger.intake import Delivery, record
from receiver.ledger.intake.recording import record_first_seen
from receiver.ledger.store import Store
from receiver.ledger.tables import EVENT
from tests.bench.accept import new_ids

BATCH, REPEATS = 16, 40


@dataclass(frozen=True)
class Grown:
    """Microseconds per delivery in a batch of 16, at this number of rows."""

    kind: str
    rows: int
    new: float
    duplicate: float


def grow(store: Store, kind: str, sizes: tuple[int, ...]) -> list[Grown]:
    """Fill a ledger in steps and measure after each."""
    found, there = [], 0
    for size in sizes:
        _fill(store, there, size)
        there = size
        found.append(Grown(kind, size, *_speed(store)))
    return found


def _fill(store: Store, start: int, end: int) -> None:
    """Copy one done event many times; the copies' ids are as random and as sorted as real ones."""
    if start == 0:
        record(store, [Delivery("stripe", "evt_model", "invoice.paid", b"{}" * 400)])
    some_id = "lower(hex(randomblob(16)))" if store.sqlite else "gen_random_uuid()"
    number = "n" if store.sqlite else "n::text"
    new = {"id": some_id, "event_id": f"'evt_' || {number}", "body_hash": f"'hash_' || {number}"}
    new |= {"state": "'done'", "finished_at": "received_at"}
    names = [column.name for column in EVENT.c]
    chosen = ", ".join(new.get(name, name) for name in names)
    numbers = f"SELECT {start + 1} UNION ALL SELECT n + 1 FROM numbers WHERE n < {end}"
    query = f"""WITH RECURSIVE numbers(n) AS ({numbers})
        INSERT INTO event ({", ".join(names)}) SELECT {chosen} FROM event, numbers
        WHERE event.event_id = 'evt_model'"""
    with store.write(limit=None) as connection:
        connection.execute(text(query))
    if not store.sqlite:
        # The store's connections end one that is silent for as long as this is.
        url = store.url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE event")


def _speed(store: Store) -> tuple[float, float]:
    new, duplicate = [], []
    for _ in range(REPEATS):
        ids = new_ids(BATCH)
        batch = [Delivery("stripe", event_id, "invoice.paid", event_id.encode() * 40) for event_id in ids]
        new.append(_timed(record_first_seen, store, batch))
        duplicate.append(_timed(record, store, batch))
    return statistics.median(new), statistics.median(duplicate)


def _timed(way: Callable[[Store, list[Delivery]], object], store: Store, batch: list[Delivery]) -> float:
    begun = time.perf_counter()
    way(store, batch)
    return (time.perf_counter() - begun) / len(batch) * 1e6
