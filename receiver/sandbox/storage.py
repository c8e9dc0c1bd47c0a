"""What the sandbox keeps, in a database of its own: effects, requests and the APIs' resources.

There are no migrations: its rows are worth nothing tomorrow. The journal functions (`note_...`, `journal`)
write down what was asked and what really happened; a `Desk` is what a view works with.
"""

import json
import secrets
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from flask import Request
from flask.typing import ResponseReturnValue
from sqlmodel import UTCDateTime

from config.nesting import load_json
from receiver.idempotency import Refusal
from receiver.ledger.errors import LedgerError
from receiver.ledger.store import Store
from receiver.ledger.tables import KEY

Fields = dict[str, Any]

# Characters of a request's body that are kept: enough to read, and a flood fills no disk.
TEXT_MAX = 10_000

metadata = sa.MetaData()


def _journal_table(name: str, *more: sa.Column[Any]) -> sa.Table:
    return sa.Table(
        name,
        metadata,
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("api", sa.Text, nullable=False),
        sa.Column("method", sa.Text, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("key", sa.Text),
        sa.Column("at", UTCDateTime(), nullable=False),
        *more,
    )


# What really happened: one row for each thing that an API made, changed or deleted.
EFFECT = _journal_table("sandbox_effect")

# What was asked, in the order of arrival; `status` stays empty until, or unless, a response is sent.
REQUEST = _journal_table("sandbox_request", sa.Column("status", sa.Integer))

# The candidates, contacts, letters, orders and events, as JSON; seen by their owner alone.
RESOURCE = sa.Table(
    "sandbox_resource",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("api", sa.Text, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("fields", sa.Text, nullable=False),
)


def prepare(store: Store) -> None:
    """Make what is missing; raise LedgerError for a database that is somebody else's."""
    with store.write() as connection:
        names = set(sa.inspect(connection).get_table_names())
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
            connection.execute(sa.delete(table))


def note_request(store: Store, api: str, request: Request, key: str | None) -> int:
    """Write a request down at its arrival, without its body as yet, and return its number."""
    # Reading the body can fail, and the request was made all the same.
    with store.write() as connection:
        row = _journal_row(store, api, request, key, "")
        return int(
            connection.execute(sa.insert(REQUEST).values(row).returning(REQUEST.c.number)).scalar_one()
        )


def note_response(store: Store, number: int, body: bytes, status: int | None) -> None:
    """Add the request's body and the status of its response; None for a connection that was dropped."""
    text = body.decode("utf-8", "replace")[:TEXT_MAX]
    with store.write() as connection:
        connection.execute(
            sa.update(REQUEST).where(REQUEST.c.number == number).values(body=text, status=status)
        )


def _journal_row(store: Store, api: str, request: Request, key: str | None, body: str) -> Fields:
    return {
        "api": api,
        "method": request.method,
        "path": request.path,
        "body": body,
        "key": key,
        "at": store.now(),
    }


def journal(store: Store, table: sa.Table) -> list[Fields]:
    """Return every row of EFFECT or REQUEST, the first one first, ready for JSON."""
    columns = [column for column in table.c if column.name != "number"]
    with store.read() as connection:
        rows = connection.execute(sa.select(*columns).order_by(table.c.number)).mappings().all()
    return [{**row, "at": row["at"].isoformat()} for row in rows]


class Desk:
    """The resources of one API and owner, inside the engine's transaction.

    Whatever it writes is committed together with the stored response.
    """

    def __init__(self, ledger: Store, request: Request, *, api: str, owner: str, key: str | None) -> None:
        self._ledger, self.request = ledger, request
        self._api, self._owner, self._key = api, owner, key
        self._mine = sa.and_(RESOURCE.c.api == api, RESOURCE.c.owner == owner)

    @property
    def now(self) -> str:
        """Return the sandbox's time, to the second."""
        return (datetime.now(UTC) + self._ledger.shift).replace(microsecond=0).isoformat()

    def json(self) -> Fields:
        """Return the request's JSON object, {} for an empty body; raise Refusal 400 for anything else."""
        try:
            found = load_json(self.request.get_data() or b"{}")
        except ValueError:
            raise Refusal(400, "invalid_json", "The body is not JSON.") from None
        if not isinstance(found, dict):
            raise Refusal(400, "invalid_json", "The body must be a JSON object.")
        return found

    def happened(self, fields: Fields | None = None) -> None:
        """Write down an effect; its body is the request's, unless `fields` are given."""
        body = self.request.get_data(as_text=True) if fields is None else json.dumps(fields)
        with self._ledger.write() as connection:
            row = _journal_row(self._ledger, self._api, self.request, self._key, body)
            connection.execute(sa.insert(EFFECT).values(row))

    def create(self, name: str, fields: Fields, *, effect: Fields | None = None) -> Fields:
        """Make a resource with an id of its own; `name` begins the id."""
        made = {"id": f"{name}_{secrets.token_hex(8)}", **fields}
        self.keep(made["id"], made)
        self.happened(effect)
        return made

    def keep(self, identity: str, fields: Fields) -> None:
        """Store a new resource."""
        row = {"api": self._api, "owner": self._owner, "id": identity, "fields": json.dumps(fields)}
        with self._ledger.write() as connection:
            connection.execute(sa.insert(RESOURCE).values(row))

    def find(self, identity: str) -> Fields:
        """Return a resource; raise Refusal 404 when this owner has none of this id."""
        with self._ledger.read() as connection:
            found = connection.execute(sa.select(RESOURCE.c.fields).where(self._is(identity))).scalar()
        if found is None:
            raise Refusal(404, "not_found", f"There is nothing with the id {identity} here.")
        fields: Fields = json.loads(found)
        return fields

    def change(self, identity: str, changes: Fields) -> Fields:
        """Change a resource and return it; a change to the same values is no effect."""
        before = self.find(identity)
        after = before | changes
        if after != before:
            with self._ledger.write() as connection:
                fields = json.dumps(after)
                connection.execute(sa.update(RESOURCE).where(self._is(identity)).values(fields=fields))
            self.happened()
        return after

    def list(self) -> list[Fields]:
        """Return the owner's resources, the oldest first."""
        with self._ledger.read() as connection:
            rows = connection.execute(
                sa.select(RESOURCE.c.fields).where(self._mine).order_by(RESOURCE.c.number)
            )
            return [json.loads(fields) for fields in rows.scalars()]

    def remove(self, identity: str) -> ResponseReturnValue:
        """Delete a resource and answer 204; a second time it is gone, and refused with 404."""
        self.find(identity)
        with self._ledger.write() as connection:
            connection.execute(sa.delete(RESOURCE).where(self._is(identity)))
        self.happened()
        return "", 204

    def _is(self, identity: str) -> sa.ColumnElement[bool]:
        return sa.and_(self._mine, RESOURCE.c.id == identity)


def text(fields: Fields, name: str, *, needed: bool = False) -> str | None:
    """Return a text of a body; raise Refusal 400 for another type, or for nothing where it is needed."""
    value = fields.get(name)
    if value is None and not needed:
        return None
    if not isinstance(value, str) or (needed and not value.strip()):
        raise Refusal(400, "validation_error", f"{name} must be a text that is not empty.")
    return value
