"""How an event's calls decide about the end of its attempt: never done while one of them is unfinished."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Row, and_, exists, select, update

from receiver.ledger.lease import Claim, claim_guard
from receiver.ledger.lease import Outcome as End
from receiver.ledger.states import COSTS_NO_ATTEMPT, ENDS_CALL, UNFINISHED_CALLS, CallState, Move
from receiver.ledger.store import Store
from receiver.ledger.tables import ATTEMPT, CALL, EVENT, SEND

FORGOTTEN = (
    "An earlier attempt began it, and the handler does not make it any more:"
    " unless it does again, resending it as new sends nothing."
)

PAUSE = timedelta(seconds=5)
"""The least wait for a call whose error the handler caught: it may be due, and kept from going out."""

MEANWHILE = "The call that stood in the way ended while its attempt did."


def none_unfinished(held: Claim) -> ColumnElement[bool]:
    """Return the condition that no call of the claimed generation is unfinished."""
    return ~exists(select(CALL.c.id).where(*_unfinished(held)))


def outcome_given_calls(store: Store, connection: Connection, held: Claim, end: End) -> End | None:
    """Return how the attempt really ends, given its calls; None when it must not end, or is not ours.

    A parked call parks its event. A handler that returned, or caught what a call raised, waits for the call.
    Attempts used up park the event while a send is open. A release leaves a send on its way alone.
    """
    locked = select(EVENT.c.id).where(*claim_guard(held)).with_for_update()
    if connection.execute(locked).first() is None:
        return None
    if end.move == Move.RELEASE:
        return None if _on_its_way(store, connection, held) else end
    calls = connection.execute(select(CALL).where(*_unfinished(held)).order_by(CALL.c.position)).all()
    if end.move == Move.FINISH:
        _park(store, connection, [call for call in calls if call.claim != held.token], FORGOTTEN)
    if end.move == Move.GIVE_UP:
        # The call's own reason stays: it says more than that the attempts are over.
        _park(store, connection, [call for call in calls if _is_open(connection, call.id)], None)
    return _end(store, connection, held, end)


def replace_rejected(connection: Connection, call: UUID) -> None:
    """Let a rejected call's successor go out at the next attempt."""
    rejected = (CALL.c.id == call, CALL.c.state == CallState.REJECTED)
    connection.execute(update(CALL).where(*rejected).values(state=CallState.REPLACED))


def retry_calls(store: Store, connection: Connection, events: Sequence[UUID]) -> None:
    """Take up, as a person retries events, what their present generations left unfinished.

    Keys stay: whatever parked a call parks it again, unless it is mended. A rejected call, which certainly
    did not happen, gets a successor, unless the handler caught that and went on: then both ways would count.
    """
    mine = CALL.c.event.in_(events), CALL.c.generation == _present()
    fresh = {"trying_since": store.now(), "due_at": None}
    again = CALL.c.state.in_((CallState.PENDING, CallState.PARKED, CallState.GIVEN_UP))
    pending = {"state": CallState.PENDING, "ended_at": None}
    connection.execute(update(CALL).where(*mine, again).values(**fresh, **pending))
    rejected = CALL.c.state == CallState.REJECTED
    connection.execute(update(CALL).where(*mine, rejected, is_last()).values(state=CallState.REPLACED))


def is_last() -> ColumnElement[bool]:
    """Return the condition that no call in a later place of its generation may have happened."""
    later = CALL.alias("later")
    same = and_(later.c.event == CALL.c.event, later.c.generation == CALL.c.generation)
    happened = later.c.state.not_in((CallState.REJECTED, CallState.REPLACED))
    return ~exists(select(later.c.id).where(same, later.c.position > CALL.c.position, happened))


def _present() -> ColumnElement[int]:
    return select(EVENT.c.generation).where(EVENT.c.id == CALL.c.event).scalar_subquery()


def _end(store: Store, connection: Connection, held: Claim, end: End) -> End:
    calls = connection.execute(select(CALL).where(*_unfinished(held)).order_by(CALL.c.position)).all()
    parked = [call for call in calls if call.state == CallState.PARKED]
    if parked:
        first = parked[0]
        reason = f"Call {first.step!r} is parked. {first.reason or ''}".rstrip()
        return replace(end, move=Move.PARK, reason=reason, call=first.id)
    if end.move == Move.FINISH and calls:
        return _waiting(store, connection, calls)
    if end.move == Move.PARK and _has_ended(connection, held, end):
        return replace(end, move=Move.CALL_LATER, reason=MEANWHILE, call=None)
    return end


def _has_ended(connection: Connection, held: Claim, end: End) -> bool:
    """Whether an answer ended the call that parks the event during the attempt: nobody wakes it later."""
    mine = (ATTEMPT.c.event == held.event, ATTEMPT.c.claim == held.token)
    begun = select(ATTEMPT.c.started_at).where(*mine).scalar_subquery()
    ended = (CALL.c.id == end.call, CALL.c.state.in_(ENDS_CALL.values()), CALL.c.ended_at >= begun)
    return connection.execute(select(CALL.c.id).where(*ended)).first() is not None


def _waiting(store: Store, connection: Connection, calls: Sequence[Row[Any]]) -> End:
    now = connection.execute(select(store.now())).scalar_one()
    delay = max(min(call.due_at or now for call in calls) - now, PAUSE)
    free = all(call.outcome in COSTS_NO_ATTEMPT for call in calls)
    reason = f"The handler returned, but call {calls[0].step!r} is not finished: {calls[0].reason or ''}"
    return End(Move.CALL_LATER if free else Move.RETRY_LATER, delay, reason=reason.rstrip())


def _park(store: Store, connection: Connection, calls: Sequence[Row[Any]], reason: str | None) -> None:
    pending = [call.id for call in calls if call.state == CallState.PENDING]
    if pending:
        change = {"state": CallState.PARKED, "ended_at": store.now()} | ({"reason": reason} if reason else {})
        connection.execute(update(CALL).where(CALL.c.id.in_(pending)).values(**change))


def _unfinished(held: Claim) -> tuple[ColumnElement[bool], ...]:
    mine = and_(CALL.c.event == held.event, CALL.c.generation == held.generation)
    return mine, CALL.c.state.in_(UNFINISHED_CALLS)


def _is_open(connection: Connection, call: UUID) -> bool:
    found = select(SEND.c.id).where(SEND.c.call == call, SEND.c.open).limit(1)
    return connection.execute(found).first() is not None


def _on_its_way(store: Store, connection: Connection, held: Claim) -> bool:
    under_way = (SEND.c.claim == held.token, SEND.c.ended_at.is_(None), SEND.c.sending_until > store.now())
    mine = select(SEND.c.id).join(CALL, CALL.c.id == SEND.c.call).where(CALL.c.event == held.event)
    return connection.execute(mine.where(*under_way).limit(1)).first() is not None
