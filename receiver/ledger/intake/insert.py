"""The INSERT that decides which deliveries are first-seen, one for a whole batch."""

import json
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, Connection, Insert, Row, bindparam, column, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.schema import ScalarElementColumnDefault

from receiver.ledger.counters import CounterKind, slot_of
from receiver.ledger.store import MOMENT, WAIT, Store
from receiver.ledger.tables import EVENT

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
"""What a delivery brings of a new row; the rest are defaults, and times of the ledger's clock."""

TIMES = ("received_at", "due_at")

SHOWN = tuple(EVENT.c[name] for name in ("id", "source", "event_id", "state"))


def insert_new(store: Store, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> Sequence[Row[Any]]:
    """Insert those of the rows whose (source, event_id) is new, in their order, and return them."""
    if not store.sqlite:
        columns = {name: [row[name] for row in rows] for name in GIVEN}
        return connection.execute(_UNNESTED, columns | store.moment()).all()
    # SQLite prepares a statement once and runs it for each row: no single statement is faster.
    times = dict.fromkeys(TIMES, store.moment()["now"])
    connection.execute(_ONE_BY_ONE, [{**row, **times} for row in rows])
    return connection.execute(_MINE, {"ids": [row["id"] for row in rows]}).all()


def _unnested() -> Insert:
    """Return the insert from one array for each column: its text is the same for a batch of any size."""
    arrays = [bindparam(name, type_=ARRAY(EVENT.c[name].type)) for name in GIVEN]
    shapes = [column(name, EVENT.c[name].type) for name in GIVEN]
    given = func.unnest(*arrays).table_valued(*shapes, with_ordinality="place", name="given").render_derived()
    values = [given.c[name] for name in GIVEN]
    chosen = select(*values, MOMENT, MOMENT).order_by(given.c.place)
    insert = postgresql.insert(EVENT).from_select([*GIVEN, *TIMES], chosen)
    return insert.on_conflict_do_nothing(index_elements=["source", "event_id"]).returning(*SHOWN)


_UNNESTED = _unnested()

_MINE = select(*SHOWN).where(EVENT.c.id.in_(bindparam("ids", expanding=True)))

_ONE_BY_ONE = sqlite.insert(EVENT).on_conflict_do_nothing(index_elements=["source", "event_id"])


# The shortest way in: one statement, sent as it is, that inserts what is new, counts it and commits.


FIRST_SEEN = "first seen"

_PRESET = {
    column.name: column.default.arg
    for column in EVENT.columns
    if isinstance(column.default, ScalarElementColumnDefault)
}
"""What a new row has without being told: numbers and flags."""


class TooStrict(Exception):
    """This database's transactions are stricter than READ COMMITTED by default."""


def insert_alone(store: Store, rows: Sequence[Mapping[str, Any]]) -> set[UUID]:
    """Insert those rows whose (source, event_id) is new, in their order; return their ids once on disk.

    Raises TooStrict, and as `Store.raw_connection` does; none of them stands when the database refuses one.
    """
    with store.raw_connection() as connection:
        if connection.info.get("strict"):
            raise TooStrict
        return (_insert_sqlite if store.sqlite else _insert_postgres)(store, connection, rows)


def _insert_postgres(store: Store, connection: Any, rows: Sequence[Mapping[str, Any]]) -> set[UUID]:
    # As JSON, since an array for each column takes the driver three times as long.
    text = _encode([{**row, "body": b64encode(row["body"]).decode()} for row in rows])
    given = {"rows": text, "shift": store.shift, "slot": slot_of(store)}
    cursor = connection.driver_connection.execute(_POSTGRES[connection.info["durable"]], given)
    return {row[0] for row in cursor.fetchall()}


def _insert_sqlite(store: Store, pooled: Any, rows: Sequence[Mapping[str, Any]]) -> set[UUID]:
    new, connection = [], pooled.driver_connection
    connection.execute("BEGIN IMMEDIATE")
    try:
        times = dict.fromkeys(TIMES, store.moment()["now"])
        for row in rows:
            values = {**row, **times}
            given = [to(values[name]) if to else values[name] for name, to in _TO_SQLITE.items()]
            if connection.execute(_SQLITE, given).rowcount:
                new.append(row)
        told = Counter(row["source"] for row in new)
        connection.executemany(
            _TALLY_SQLITE, [(CounterKind.DELIVERY, name, told[name]) for name in sorted(told)]
        )
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return {row["id"] for row in new}


def _plain(value: Any) -> str:
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else str(value)


_encode = json.JSONEncoder(default=_plain, separators=(",", ":")).encode


def _literal(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(int(value))


def _postgres(promises: Mapping[str, str]) -> str:
    kinds = {"id": "uuid", "created_at": "timestamptz"}
    shape = ", ".join(f"{name} {kinds.get(name, 'text')}" for name in GIVEN)
    chosen = ", ".join(
        f"decode(given.{name}, 'base64')" if name == "body" else f"given.{name}" for name in GIVEN
    )
    columns, preset = ", ".join([*GIVEN, *TIMES, *_PRESET]), ", ".join(map(_literal, _PRESET.values()))
    now = "(SELECT clock_timestamp() + %(shift)s)"
    # No row comes before the settings are made, and they end with this statement, which is a transaction.
    promised = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in promises.items())
    return f"""
        WITH promised AS MATERIALIZED (SELECT {promised}),
        first AS (
            INSERT INTO event ({columns})
            SELECT {chosen}, {now}, {now}, {preset}
            FROM promised, ROWS FROM (json_to_recordset(%(rows)s::json) AS ({shape})) WITH ORDINALITY
                AS given ({", ".join(GIVEN)}, place)
            ORDER BY place
            ON CONFLICT (source, event_id) DO NOTHING
            RETURNING id, source
        ), told AS (
            INSERT INTO tally (kind, name, what, slot, count)
            SELECT '{CounterKind.DELIVERY}', source, '{FIRST_SEEN}', %(slot)s, count(*) FROM first
            GROUP BY source ORDER BY source COLLATE "C"
            ON CONFLICT (kind, name, what, slot) DO UPDATE SET count = tally.count + excluded.count
        )
        SELECT id FROM first"""  # noqa: S608 - names of columns; every value is a parameter


def _sqlite() -> str:
    columns, preset = ", ".join([*GIVEN, *TIMES, *_PRESET]), ", ".join(map(_literal, _PRESET.values()))
    places = ", ".join("?" * len(_TO_SQLITE))
    insert = f"INSERT INTO event ({columns}) VALUES ({places}, {preset})"  # noqa: S608 - as above
    return f"{insert} ON CONFLICT (source, event_id) DO NOTHING"


def _processors() -> dict[str, Callable[[Any], Any] | None]:
    dialect = sqlite.dialect()
    return {
        name: EVENT.c[name].type.dialect_impl(dialect).bind_processor(dialect) for name in (*GIVEN, *TIMES)
    }


_TO_SQLITE = _processors()

_BOUNDED = {"lock_timeout": f"{WAIT:.0f}s"}

_POSTGRES = {True: _postgres(_BOUNDED), False: _postgres(_BOUNDED | {"synchronous_commit": "on"})}

_SQLITE = _sqlite()

_TALLY_SQLITE = (
    f"INSERT INTO tally (kind, name, what, slot, count) VALUES (?, ?, '{FIRST_SEEN}', 0, ?)"  # noqa: S608
    " ON CONFLICT (kind, name, what, slot) DO UPDATE SET count = tally.count + excluded.count"
)
