"""Reading the journal: which calls there are. The command line, /v1 and the dashboard all ask here."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Row, Select, false, select

from receiver.ledger.calls.models import CALL
from receiver.ledger.calls.states import CallState
from receiver.ledger.models import EVENT
from receiver.ledger.queries import PAGE_MAX, Page, paged, read_cursor, rfc3339, sources
from receiver.ledger.store import Store
from receiver.ledger.texts import plain, storable_id

TIMES = ("created_at", "first_sent_at", "expires_at", "due_at", "quiet_until", "ended_at")
PLACE = ("generation", "position", "step", "successor", "state")
REQUEST = ("api", "method", "url", "protection", "key", "once", "fingerprint", "changed_to", "use_stored")
SHOWN = ("id", "event", *PLACE, *REQUEST, "shares", "outcome", "reason", "status", "sends", *TIMES)
COLUMNS: list[Any] = [CALL.c[name] for name in SHOWN]


@dataclass(frozen=True)
class CallFilter:
    """Which calls: every part that is given must hold. `event` is the ledger's id."""

    state: CallState | None = None
    api: str | None = None
    source: str | None = None
    event_id: str | None = None
    event: UUID | None = None


def list_calls(store: Store, which: CallFilter, *, limit: int = 50, cursor: str | None = None) -> Page:
    """Return one page of calls, newest first, each as `call_json` has it, with `source` and `event_id`.

    Raises BadCursor for a cursor that was not made here.
    """
    size = max(1, min(limit, PAGE_MAX))
    joined: Select[Any] = select(*COLUMNS, EVENT.c.source, EVENT.c.event_id).join(
        EVENT, EVENT.c.id == CALL.c.event
    )
    statement = joined.where(*conditions(which)).order_by(CALL.c.id.desc())
    if cursor:
        statement = statement.where(CALL.c.id < read_cursor(cursor))
    with store.read() as connection:
        return paged(connection.execute(statement.limit(size + 1)).all(), size, owned_json)


def conditions(which: CallFilter) -> Iterable[ColumnElement[bool]]:
    """Yield what a filter asks of the tables of calls and events."""
    if which.state is not None:
        yield CALL.c.state == which.state
    if which.event is not None:
        yield CALL.c.event == which.event
    for column, wanted in ((CALL.c.api, which.api), (EVENT.c.source, which.source)):
        if wanted is not None:
            yield column == wanted if plain(wanted) == wanted else false()
    if which.event_id is not None:
        yield EVENT.c.event_id == storable_id(which.event_id)
        if which.source is None:
            yield EVENT.c.source.in_(sources())


def call_json(row: Row[Any]) -> dict[str, Any]:
    """Return a call ready for JSON: the columns of SHOWN, ids and times as text.

    `send_count` counts all its sends. `changed_to` is the fingerprint of other bytes that the handler asked
    for later. Neither request nor answer is in it.
    """
    shown = {name: getattr(row, name) for name in SHOWN if name != "sends"}
    texts = {"id": str(row.id), "event": str(row.event), "shares": str(row.shares) if row.shares else None}
    return {**shown, **texts, "send_count": row.sends, **{name: rfc3339(shown[name]) for name in TIMES}}


def owned_json(row: Row[Any]) -> dict[str, Any]:
    """Return a call with the names of its event."""
    return {**call_json(row), "source": row.source, "event_id": row.event_id}
