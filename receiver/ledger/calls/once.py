"""`once`: one call for all events of an API that name it so. The database decides which."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from receiver.ledger.calls.models import CALL
from receiver.ledger.calls.states import CallState
from receiver.ledger.store import Store

NEVER_EXECUTED = (CallState.REJECTED, CallState.REPLACED)
"""States of a call that never happened, so that another event may use its `once`."""

TOLD_AGAIN = "Its answer is not kept any more: say that it happened, with the part you need."


def insert_first(store: Store, connection: Connection, row: Mapping[str, Any]) -> bool:
    """Insert a call with `once`; False when another call has it."""
    insert = (sqlite if store.sqlite else postgresql).insert(CALL).values(**row)
    return bool(connection.execute(insert.on_conflict_do_nothing().returning(CALL.c.id)).first())


def follow(store: Store, connection: Connection, row: Row[Any], once: str | None) -> None:
    """Take over what became of the call that this one shares, or its place when that never happened."""
    shares = row.shares or _holder(connection, row.api, once)
    first = connection.execute(select(CALL).where(CALL.c.id == shares)).first()
    if first is None or first.state in NEVER_EXECUTED:
        _take_over(store, connection, row, once)
    elif first.state == CallState.SUCCEEDED:
        _copy(store, connection, row, first)
    else:
        reason = f"It waits for the call {first.id} of another event, which is not finished."
        _change(connection, row, shares=first.id, reason=reason)


def _holder(connection: Connection, api: str, once: str | None) -> UUID | None:
    same = (CALL.c.api == api, CALL.c.once == once, CALL.c.state.not_in(NEVER_EXECUTED))
    holder: UUID | None = connection.execute(select(CALL.c.id).where(*same)).scalar()
    return holder


def _take_over(store: Store, connection: Connection, row: Row[Any], once: str | None) -> None:
    fresh = {"trying_since": store.now(), "reason": None}
    try:
        with connection.begin_nested():
            _change(connection, row, shares=None, once=once, **fresh)
    except IntegrityError:
        # Somebody else was quicker: wait for that one.
        _change(connection, row, shares=_holder(connection, row.api, once))


def _copy(store: Store, connection: Connection, row: Row[Any], first: Row[Any]) -> None:
    kept = {name: getattr(first, name) for name in ("status", "answer_headers", "answer", "outcome")}
    reason = f"The call {first.id} of another event did this once for all."
    end = {"state": CallState.SUCCEEDED, "reason": reason}
    if first.answer is None:
        end = {"state": CallState.PARKED, "reason": f"{reason} {TOLD_AGAIN}"}
    _change(connection, row, shares=first.id, ended_at=store.now(), **end, **kept)


def _change(connection: Connection, row: Row[Any], **values: Any) -> None:
    connection.execute(update(CALL).where(CALL.c.id == row.id).values(**values))
