"""What the sandbox remembers of requests and effects, for whoever wants to count them."""

from typing import Any

from flask import Request
from sqlalchemy import Table, insert, select, update

from receiver.ledger.store import Store
from receiver.sandbox.tables import EFFECT, REQUEST

TEXT_MAX = 10_000
"""Characters of a request's body that are kept."""


def note_request(store: Store, api: str, request: Request, key: str | None) -> int:
    """Write a request down at its arrival, without its body as yet, and return its number."""
    row = {"api": api, "method": request.method, "path": request.path, "body": "", "key": key}
    with store.write() as connection:
        made = connection.execute(insert(REQUEST).values(**row, at=store.now()).returning(REQUEST.c.number))
        return int(made.scalar_one())


def note_answer(store: Store, number: int, body: bytes, status: int | None) -> None:
    """Add what the request said and how it was answered; None for a connection that was dropped."""
    text = body.decode("utf-8", "replace")[:TEXT_MAX]
    with store.write() as connection:
        connection.execute(update(REQUEST).where(REQUEST.c.number == number).values(body=text, status=status))


def note_effect(ledger: Store, api: str, request: Request, key: str | None, body: str) -> None:
    """Write an effect down, in the transaction of the view that has it."""
    row = {"api": api, "method": request.method, "path": request.path, "body": body, "key": key}
    with ledger.write() as connection:
        connection.execute(insert(EFFECT).values(**row, at=ledger.now()))


def effects(store: Store) -> list[dict[str, Any]]:
    """Return every effect, the first one first."""
    return _rows(store, EFFECT)


def requests(store: Store) -> list[dict[str, Any]]:
    """Return every request, the first one first."""
    return _rows(store, REQUEST)


def _rows(store: Store, table: Table) -> list[dict[str, Any]]:
    columns = [column for column in table.c if column.name != "number"]
    with store.read() as connection:
        rows = connection.execute(select(*columns).order_by(table.c.number)).mappings().all()
    return [{**row, "at": row["at"].isoformat()} for row in rows]
