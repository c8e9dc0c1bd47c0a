"""Outbound calls: which there are, and all that happened to one of them.

`list_calls` lists them, `calls_of` returns those of an event for its timeline, and `call_story` returns the
timeline of one.
"""

import json
from collections.abc import Collection, Iterable
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Select, and_, false, func, select

from receiver.ledger.errors import UnknownCall
from receiver.ledger.filter import CallFilter, sources
from receiver.ledger.reports import models
from receiver.ledger.reports.next_step import call_outlook, is_open
from receiver.ledger.store import Store
from receiver.ledger.tables import ACTION, ATTEMPT, CALL, EVENT, SEND
from receiver.ledger.text import plain, readable, storable

# The latest calls of an event in its story; a handler that loops must not make it unreadable.
CALLS_SHOWN = 200

# The latest sends of each call in its event's story, and in its own.
SENDS_SHOWN, SENDS_IN_FULL = 20, 200

# The model's `send_count` is the table's `sends`, a name that the model's lists of sends have.
COLUMNS: list[Any] = [
    CALL.c.sends.label(name) if name == "send_count" else CALL.c[name] for name in models.Call.model_fields
]


def list_calls(
    store: Store, which: CallFilter, *, limit: int = 50, cursor: str | None = None
) -> models.CallsView:
    """Return one page of calls, newest first. Raises BadCursor for a cursor that was not made here."""
    size = max(1, min(limit, models.PAGE_MAX))
    joined: Select[Any] = select(*COLUMNS, EVENT.c.source, EVENT.c.event_id).join(
        EVENT, EVENT.c.id == CALL.c.event
    )
    statement = joined.where(*_conditions(which)).order_by(CALL.c.id.desc())
    if cursor:
        statement = statement.where(CALL.c.id < models.read_cursor(cursor))
    with store.read() as connection:
        rows = connection.execute(statement.limit(size + 1)).all()
    data = [models.OwnedCall.model_validate(row, from_attributes=True) for row in rows[:size]]
    return models.CallsView(data=data, next=models.next_cursor(rows, size))


def calls_of(connection: Connection, event: UUID) -> list[models.ToldCall]:
    """Return an event's latest calls with their latest sends, by generation and place; successors follow."""
    size = func.length(CALL.c.answer).label("size")
    latest = (CALL.c.generation.desc(), CALL.c.position.desc(), CALL.c.successor.desc())
    mine: Select[Any] = select(*COLUMNS, CALL.c.answer_headers, size).where(CALL.c.event == event)
    rows = connection.execute(mine.order_by(*latest).limit(CALLS_SHOWN)).all()[::-1]
    sends = _sends(connection, event, [row.id for row in rows], SENDS_SHOWN)
    calls = []
    for row in rows:
        columns = {name: getattr(row, name) for name in models.Call.model_fields}
        kind = _content_type(json.loads(row.answer_headers or "[]"))
        answer = None if row.size is None else models.Stored(size=row.size, content_type=kind)
        calls.append(models.ToldCall(**columns, answer=answer, sends=sends[row.id]))
    return calls


def call_story(store: Store, call: UUID) -> models.CallStory:
    """Return the whole story of a call; raises UnknownCall.

    Its `request` is None once that is erased, its `answer` also while there is none.
    """
    with store.read() as connection:
        found = select(CALL, EVENT.c.source, EVENT.c.event_id, is_open(), store.now().label("now"))
        row = connection.execute(
            found.join(EVENT, EVENT.c.id == CALL.c.event).where(CALL.c.id == call)
        ).first()
        if row is None:
            raise UnknownCall(f"No call {call} is in the ledger.")
        event = connection.execute(select(EVENT).where(EVENT.c.id == row.event)).one()
        actions = select(*[ACTION.c[name] for name in models.CallAction.model_fields])
        mine = actions.where(ACTION.c.event == row.event, ACTION.c.call == call)
        newest = connection.execute(mine.order_by(ACTION.c.at.desc(), ACTION.c.id.desc())).mappings()
        columns = {name: getattr(row, name) for name in models.OwnedCall.model_fields if name != "send_count"}
        return models.CallStory(
            call=models.OwnedCall(**columns, send_count=row.sends),
            event=models.EventView.model_validate(event, from_attributes=True),
            request=_content(json.loads(row.headers).items(), row.body),
            answer=_content(json.loads(row.answer_headers or "[]"), row.answer),
            sends=_sends(connection, row.event, [call], SENDS_IN_FULL)[call],
            actions=[models.CallAction(**action) for action in newest],
            next=call_outlook(row, event),
        )


def _conditions(which: CallFilter) -> Iterable[ColumnElement[bool]]:
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


def _content(headers: Collection[tuple[str, str]], body: bytes | None) -> models.Content | None:
    if body is None:
        return None
    return models.Content(content_type=_content_type(headers), size=len(body), **readable(body))


def _content_type(headers: Collection[tuple[str, str]]) -> str | None:
    return next((value for name, value in headers if name.lower() == "content-type"), None)


def _sends(
    connection: Connection, event: UUID, calls: Collection[UUID], most: int
) -> dict[UUID, list[models.Send]]:
    # Ranked in the database: a call that went out a thousand times must not be read whole.
    newest = func.row_number().over(partition_by=SEND.c.call, order_by=SEND.c.number.desc()).label("newest")
    began = and_(ATTEMPT.c.event == event, ATTEMPT.c.claim == SEND.c.claim)
    joined = select(SEND, ATTEMPT.c.number.label("attempt"), newest).join(ATTEMPT, began, isouter=True)
    ranked = joined.where(SEND.c.call.in_(calls)).subquery()
    found: dict[UUID, list[models.Send]] = {call: [] for call in calls}
    chosen = select(ranked).where(ranked.c.newest <= most).order_by(ranked.c.number)
    for row in connection.execute(chosen):
        found[row.call].append(models.Send.model_validate(row, from_attributes=True))
    return found
