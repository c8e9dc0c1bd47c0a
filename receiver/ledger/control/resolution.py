"""Resolving: what a person says became of a call that nobody else can decide about, or shall."""

import json
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row, select, update

from receiver.ledger.calls import StoredResponse, retry_calls
from receiver.ledger.control.actions import ActionResult, note_action
from receiver.ledger.errors import NotAllowed, UnknownCall
from receiver.ledger.states import UNFINISHED_CALLS, CallState, Move, State, enters
from receiver.ledger.store import Store
from receiver.ledger.tables import CALL, EVENT, SEND
from receiver.ledger.text import clipped, rfc3339


class Resolution(StrEnum):
    """What became of the call, or shall."""

    HAPPENED = "happened"
    RESEND_AS_NEW = "resend-as-new"
    USE_STORED = "use-stored"
    GIVE_UP = "give-up"


# Where each resolution brings its call.
STATES: Final = {
    Resolution.HAPPENED: CallState.SUCCEEDED,
    Resolution.RESEND_AS_NEW: CallState.REPLACED,
    Resolution.USE_STORED: CallState.PENDING,
    Resolution.GIVE_UP: CallState.GIVEN_UP,
}

# What people read of it; a name follows.
REASONS: Final = {
    Resolution.HAPPENED: "It happened, says",
    Resolution.RESEND_AS_NEW: "To be sent as new, says",
    Resolution.USE_STORED: "To be sent with the stored bytes, says",
    Resolution.GIVE_UP: "Given up by",
}


def resolve(
    store: Store, call: UUID, how: Resolution, who: str, *, response: StoredResponse | None = None
) -> ActionResult:
    """Resolve a call of a parked event, and let the event go on; a call given up ends its event.

    `response` is what the handler gets for a call that happened: by default a 200 without a body.
    Call and event change together or not at all. Raises UnknownCall, or NotAllowed with the reason.
    """
    with store.write() as connection:
        event = connection.execute(select(CALL.c.event).where(CALL.c.id == call)).scalar()
        if event is None:
            raise UnknownCall(f"No call {call} is in the ledger.")
        # Event before call: the order in which every transaction locks them.
        connection.execute(select(EVENT.c.id).where(EVENT.c.id == event).with_for_update())
        columns = EVENT.c.state.label("event_state"), EVENT.c.generation.label("present"), EVENT.c.event_id
        joined = select(CALL, *columns, store.now().label("now")).join(EVENT, EVENT.c.id == CALL.c.event)
        row = connection.execute(joined.where(CALL.c.id == call)).one()
        _refuse(row, how)
        change: dict[str, Any] = {
            "state": STATES[how],
            "reason": f"{REASONS[how]} {clipped(who)}.",
            "ended_at": None if how == Resolution.USE_STORED else row.now,
            "due_at": None,
            "trying_since": row.now,
        }
        if how == Resolution.USE_STORED:
            change["use_stored"] = True
        if how == Resolution.HAPPENED:
            stated = response or StoredResponse(200, (), b"")
            change |= {"status": stated.status, "answer": stated.body}
            change["answer_headers"] = json.dumps(stated.headers)
            connection.execute(update(SEND).where(SEND.c.call == call).values(open=False))
        connection.execute(update(CALL).where(CALL.c.id == call).values(**change))
        if row.generation != row.present:
            # A call with `once` of an earlier generation: the present one may have parked behind it.
            retry_calls(store, connection, [event])
        # The event goes on, or ends with a call that was given up.
        move = Move.DISCARD if how == Resolution.GIVE_UP else Move.RESOLVE
        moved: dict[str, Any] = {"state": enters(move), "parked_call": None, "nudged_at": None, "nudges": 0}
        if move == Move.DISCARD:
            reason = f"Its call {row.step!r} was given up by {clipped(who)}."
            moved |= {"finished_at": row.now, "discarded": True, "reason": reason}
        else:
            moved |= {"due_at": row.now, "attempts": 0, "crashes": 0, "reason": None}
        connection.execute(update(EVENT).where(EVENT.c.id == event).values(**moved))
        result = ActionResult(event, move, State(row.event_state), enters(move), row.generation)
        note_action(store, connection, who, [result], what=how, call=row.id)
        return result


def _refuse(row: Row[Any], how: Resolution) -> None:
    """Raise NotAllowed where this call cannot be resolved so."""
    name = f"Call {row.step!r} of event {row.event_id}"
    if row.state not in UNFINISHED_CALLS:
        raise NotAllowed(f"{name} is {row.state}; there is nothing left to resolve.")
    # A call with `once` is for all generations, so an earlier one's may keep the present one waiting.
    if row.generation != row.present and row.once is None:
        raise NotAllowed(f"{name} is of generation {row.generation}; the event is in {row.present} now.")
    if row.event_state != State.PARKED:
        raise NotAllowed(
            f"{name} cannot be resolved while its event is {row.event_state}, only once it parks."
        )
    if how == Resolution.USE_STORED and row.changed_to is None:
        raise NotAllowed(f"{name} was never asked for with other bytes; retry the event instead.")
    if how == Resolution.RESEND_AS_NEW and row.quiet_until and row.quiet_until > row.now:
        when = rfc3339(row.quiet_until, "seconds")
        raise NotAllowed(f"{name} may still be under way there; resend it as new after {when}.")
