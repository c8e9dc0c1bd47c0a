"""The sandbox's tables, in a file of its own: no migrations, its rows are worth nothing tomorrow."""

from sqlalchemy import Column, Integer, MetaData, Table, Text, delete, inspect
from sqlmodel import UTCDateTime

from receiver.ledger.errors import LedgerError
from receiver.ledger.idempotency_keys import KEY
from receiver.ledger.store import Store

metadata = MetaData()

EFFECT = Table(
    "sandbox_effect",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("api", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("key", Text),
    Column("at", UTCDateTime(), nullable=False),
)
"""What really happened: one row for each thing that an API made, changed or deleted."""

REQUEST = Table(
    "sandbox_request",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("api", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("key", Text),
    Column("at", UTCDateTime(), nullable=False),
    Column("status", Integer),
)
"""What was asked, in the order of arrival; `status` stays empty until, or unless, an answer is sent."""

RESOURCE = Table(
    "sandbox_resource",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("api", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("id", Text, nullable=False),
    Column("fields", Text, nullable=False),
)
"""The candidates, contacts, letters, orders and events, as JSON; seen by their owner alone."""


def prepare(store: Store) -> None:
    """Make what is missing; raise LedgerError for a database that is somebody else's."""
    with store.write() as connection:
        names = set(inspect(connection).get_table_names())
        if "alembic_version" in names or "event" in names:
            raise LedgerError(
                f"{store.url.database} is a ledger, and the sandbox forgets all at a reset:"
                " give it a file of its own."
            )
        metadata.create_all(connection)
        KEY.create(connection, checkfirst=True)


def empty(store: Store) -> None:
    """Forget every effect, request, resource and key."""
    with store.write() as connection:
        for table in (EFFECT, REQUEST, RESOURCE, KEY):
            connection.execute(delete(table))
