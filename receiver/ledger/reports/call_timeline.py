"""Reading the journal: which calls there are. The command line, /v1 and the dashboard all ask here."""

import json
from collections.abc import Collection, Iterable
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, false, func, select

from receiver.ledger.errors import UnknownCall
from receiver.ledger.filter import CallFilter, sources
from receiver.ledger.reports.models import PAGE_MAX, Page, event_json, paged, read_cursor
from receiver.ledger.reports.next_step import call_outlook, is_open
from receiver.ledger.store import Store
from receiver.ledger.tables import ACTION, ATTEMPT, CALL, EVENT, SEND
from receiver.ledger.text import plain, readable, rfc3339, storable

TIMES = ("created_at", "first_sent_at", "expires_at", "due_at", "quiet_until", "ended_at")

PLACE = ("generation", "position", "step", "successor", "state")

REQUEST = ("api", "method", "url", "protection", "key", "once", "fingerprint", "changed_to", "use_stored")

SHOWN = ("id", "event", *PLACE, *REQUEST, "shares", "outcome", "reason", "status", "sends", *TIMES)

COLUMNS: list[Any] = [CALL.c[name] for name in SHOWN]


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
        yield EVENT.c.event_id == storable(which.event_id)
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


# The calls of one event with their sends, and the whole story of one call.


CALLS_SHOWN = 200
"""The latest calls of an event that its story tells; a handler that loops must not make it unreadable."""

SENDS_SHOWN, SENDS_IN_FULL = 20, 200
"""The latest sends of each call in its event's story, and in its own."""

SENT = (
    "number",
    "claim",
    "attempt",
    "at",
    "sending_until",
    "ended_at",
    "outcome",
    "status",
    "open",
    "reason",
)


def calls_of(connection: Connection, event: UUID) -> list[dict[str, Any]]:
    """Return an event's calls as `call_json` has them, by generation and place; successors follow.

    Each with `answer`, `{size, content_type}` or null, and `sends: [{number, claim, attempt, at,
    sending_until, ended_at, outcome, status, open, reason}]`, oldest first; `attempt` is the number of the
    attempt that its `claim` began.
    """
    size = func.length(CALL.c.answer).label("size")
    latest = (CALL.c.generation.desc(), CALL.c.position.desc(), CALL.c.successor.desc())
    mine: Select[Any] = select(*COLUMNS, CALL.c.answer_headers, size).where(CALL.c.event == event)
    rows = connection.execute(mine.order_by(*latest).limit(CALLS_SHOWN)).all()[::-1]
    sends = _sends(connection, event, [row.id for row in rows], SENDS_SHOWN)
    return [{**call_json(row), "answer": _outside(row), "sends": sends[row.id]} for row in rows]


def call_story(store: Store, call: UUID) -> dict[str, Any]:
    """Return the whole story of a call, ready for JSON; raises UnknownCall.

    `{call, event, request: {content_type, size, encoding, body}, answer: {the same}, sends, actions: [{what,
    who, at, was}], next}`. `request` is null once it is erased, `answer` also while there is none.
    """
    with store.read() as connection:
        found = select(CALL, EVENT.c.source, EVENT.c.event_id, is_open(), store.now().label("now"))
        row = connection.execute(
            found.join(EVENT, EVENT.c.id == CALL.c.event).where(CALL.c.id == call)
        ).first()
        if row is None:
            raise UnknownCall(f"No call {call} is in the ledger.")
        event = connection.execute(select(EVENT).where(EVENT.c.id == row.event)).one()
        headers = list(json.loads(row.headers).items())
        return {
            "call": owned_json(row),
            "event": event_json(event),
            "request": _content(headers, row.body),
            "answer": _content(json.loads(row.answer_headers or "[]"), row.answer),
            "sends": _sends(connection, row.event, [call], SENDS_IN_FULL)[call],
            "actions": _actions(connection, row),
            "next": call_outlook(row, event),
        }


def _outside(row: Row[Any]) -> dict[str, Any] | None:
    if row.size is None:
        return None
    return {"size": row.size, "content_type": _content_type(json.loads(row.answer_headers or "[]"))}


def _content(headers: Collection[tuple[str, str]], body: bytes | None) -> dict[str, Any] | None:
    if body is None:
        return None
    return {"content_type": _content_type(headers), "size": len(body), **readable(body)}


def _content_type(headers: Collection[tuple[str, str]]) -> str | None:
    return next((value for name, value in headers if name.lower() == "content-type"), None)


def _sends(
    connection: Connection, event: UUID, calls: Collection[UUID], most: int
) -> dict[UUID, list[dict[str, Any]]]:
    newest = func.row_number().over(partition_by=SEND.c.call, order_by=SEND.c.number.desc()).label("newest")
    began = and_(ATTEMPT.c.event == event, ATTEMPT.c.claim == SEND.c.claim)
    joined = select(SEND, ATTEMPT.c.number.label("attempt"), newest).join(ATTEMPT, began, isouter=True)
    ranked = joined.where(SEND.c.call.in_(calls)).subquery()
    found: dict[UUID, list[dict[str, Any]]] = {call: [] for call in calls}
    chosen = select(ranked).where(ranked.c.newest <= most).order_by(ranked.c.number)
    for row in connection.execute(chosen):
        sent = {name: getattr(row, name) for name in SENT}
        times = {name: rfc3339(sent[name]) for name in ("at", "sending_until", "ended_at")}
        found[row.call].append({**sent, **times})
    return found


def _actions(connection: Connection, row: Row[Any]) -> list[dict[str, Any]]:
    columns = ACTION.c.what, ACTION.c.who, ACTION.c.at, ACTION.c.was
    mine = select(*columns).where(ACTION.c.event == row.event, ACTION.c.call == row.id)
    found = connection.execute(mine.order_by(ACTION.c.at.desc(), ACTION.c.id.desc())).mappings()
    return [{**action, "at": rfc3339(action["at"])} for action in found]
