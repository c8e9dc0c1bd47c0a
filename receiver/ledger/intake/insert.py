"""The INSERT that decides which deliveries are first-seen: one statement a database, one for a whole batch.

`insert_new` runs it inside a transaction. `insert_alone` is the fast path: one statement inserts, counts and
commits. Both send it past SQLAlchemy's own compiler, which would take longer than the statement.
"""

import json
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import sqlite
from sqlalchemy.sql.schema import ScalarElementColumnDefault

from receiver.ledger.counters import ALL_TIME, FIRST_SEEN, CounterKind, slot_of
from receiver.ledger.store import LOCK_WAIT, Store
from receiver.ledger.tables import COUNTER, EVENT

# What a delivery brings of a new row; the rest are times of the ledger's clock, and defaults.
GIVEN = (
    "id",
    "source",
    "event_id",
    "type",
    "state",
    "reason",
    "created_at",
    "address",
    "body_hash",
    "body",
    "headers",
    "content_type",
    "traceparent",
)

TIMES = ("received_at", "due_at")

# Numbers and flags, by column.
DEFAULTS: Final = {
    column.name: column.default.arg
    for column in EVENT.columns
    if isinstance(column.default, ScalarElementColumnDefault)
}

# New rows as GIVEN has them, sorted by (source, event_id), each key once.
Rows = Sequence[Mapping[str, Any]]


class TooStrict(Exception):
    """This database's transactions are stricter than READ COMMITTED by default."""


def insert_new(store: Store, connection: Connection, rows: Rows) -> set[UUID]:
    """Insert those rows whose (source, event_id) is new, in the caller's transaction; return their ids."""
    if not store.sqlite:
        return set(connection.exec_driver_sql(_NEW, _postgres_values(store, rows)).scalars())
    options = {"preserve_rowcount": True}
    done = connection.exec_driver_sql(_SQLITE, _sqlite_values(store, rows), execution_options=options)
    if done.rowcount == len(rows):
        return {row["id"] for row in rows}
    found = connection.exec_driver_sql(_WHICH, _sqlite_ids(rows)).scalars()
    return {UUID(text) for text in found}


def insert_alone(store: Store, rows: Rows) -> set[UUID]:
    """Insert those rows whose (source, event_id) is new, and count them; return their ids once on disk.

    Raises TooStrict, and as `Store.raw_connection` does; none of them stands when the database refuses one.
    """
    with store.raw_connection() as pooled:
        connection: Any = pooled.driver_connection
        if not store.sqlite:
            if pooled.info["strict"]:
                # A lone statement cannot loosen its own transaction, and would fail where two meet at a row.
                raise TooStrict
            settings = {"commit": pooled.info["commit"], "slot": slot_of(store)}
            values = _postgres_values(store, rows) | settings
            return {row[0] for row in connection.execute(_ALONE, values).fetchall()}
        connection.execute("BEGIN IMMEDIATE")
        try:
            new = {row["id"] for row in rows}
            if connection.executemany(_SQLITE, _sqlite_values(store, rows)).rowcount < len(rows):
                new = {UUID(row[0]) for row in connection.execute(_WHICH, _sqlite_ids(rows)).fetchall()}
            counts = Counter(row["source"] for row in rows if row["id"] in new)
            connection.executemany(_COUNT_SQLITE, sorted(counts.items()))
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return new


COLUMNS = ", ".join([*GIVEN, *TIMES, *DEFAULTS])
PRESET = ", ".join(str(value).lower() for value in DEFAULTS.values())


# PostgreSQL: the rows are one JSON parameter, since an array for each column takes the driver three times as
# long. They are never part of the text, which the server writes into its log when a statement fails.

_TYPES = {"id": "uuid", "created_at": "timestamptz"}
_SHAPE = ", ".join(f"{name} {_TYPES.get(name, 'text')}" for name in GIVEN)
_CHOSEN = ", ".join(f"decode({name}, 'base64')" if name == "body" else name for name in GIVEN)
_NOW = "(SELECT clock_timestamp() + %(shift)s)"

_POSTGRES = f"""INSERT INTO event ({COLUMNS})
    SELECT {_CHOSEN}, {_NOW}, {_NOW}, {PRESET}
    FROM {{settings}} ROWS FROM (json_to_recordset(%(rows)s::json) AS ({_SHAPE})) WITH ORDINALITY
        AS given ({", ".join(GIVEN)}, place)
    ORDER BY place
    ON CONFLICT (source, event_id) DO NOTHING
    RETURNING id, source"""  # noqa: S608 - names of columns and constants; every value is a parameter

_NEW = _POSTGRES.format(settings="")

# The settings are joined first, so no row is inserted before they are made; they end with the statement.
_ALONE = f"""WITH settings AS MATERIALIZED (
        SELECT set_config('lock_timeout', '{LOCK_WAIT:.0f}s', true),
            set_config('synchronous_commit', %(commit)s, true)
    ), first AS (
        {_POSTGRES.format(settings="settings,")}
    ), counted AS (
        INSERT INTO counter (kind, minute, name, what, slot, count)
        SELECT '{CounterKind.DELIVERY}', '{ALL_TIME}', source, '{FIRST_SEEN}', %(slot)s, count(*)
        FROM first GROUP BY source ORDER BY source COLLATE "C"
        ON CONFLICT (kind, minute, name, what, slot) DO UPDATE SET count = counter.count + excluded.count
    )
    SELECT id FROM first"""  # noqa: S608 - as above


def _postgres_values(store: Store, rows: Rows) -> dict[str, Any]:
    encoded = _encode([{**row, "body": b64encode(row["body"]).decode()} for row in rows])
    return {"rows": encoded, "shift": store.shift}


_encode = json.JSONEncoder(
    default=lambda value: value.isoformat() if isinstance(value, datetime) else str(value),
    separators=(",", ":"),
).encode


# SQLite prepares a statement once and runs it for each row: no single statement for all is faster.

_SQLITE = f"""INSERT INTO event ({COLUMNS}) VALUES ({", ".join("?" * len([*GIVEN, *TIMES]))}, {PRESET})
    ON CONFLICT (source, event_id) DO NOTHING"""  # noqa: S608 - as above
_WHICH = "SELECT id FROM event WHERE id IN (SELECT value FROM json_each(?))"


def _stored(table: Table, name: str) -> Any:
    """Return what makes a value what SQLAlchemy would store in this column."""
    dialect = sqlite.dialect()
    return table.c[name].type.dialect_impl(dialect).bind_processor(dialect) or (lambda value: value)


_STORED = {name: _stored(EVENT, name) for name in (*GIVEN, *TIMES)}

_COUNT_SQLITE = f"""INSERT INTO counter (kind, minute, name, what, slot, count)
    VALUES ('{CounterKind.DELIVERY}', '{_stored(COUNTER, "minute")(ALL_TIME)}', ?, '{FIRST_SEEN}', 0, ?)
    ON CONFLICT (kind, minute, name, what, slot) DO UPDATE SET count = counter.count + excluded.count"""  # noqa: S608


def _sqlite_values(store: Store, rows: Rows) -> list[tuple[Any, ...]]:
    times = dict.fromkeys(TIMES, store.moment()["now"])
    return [
        tuple(to(values[name]) for name, to in _STORED.items())
        for values in ({**row, **times} for row in rows)
    ]


def _sqlite_ids(rows: Rows) -> tuple[str]:
    return (_encode([row["id"].hex for row in rows]),)
