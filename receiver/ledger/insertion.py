"""The INSERT that decides which deliveries are first-seen, one for a whole batch."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ARRAY, Connection, Insert, Row, bindparam, column, func, select
from sqlalchemy.dialects import postgresql, sqlite

from receiver.ledger.models import EVENT
from receiver.ledger.store import MOMENT, Store

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
