"""How an event's calls decide the outcome of its attempt: never done while one of them is unfinished."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Row, and_, exists, select, update

from receiver.ledger.calls.sends import open_until
from receiver.ledger.lease import Claim, Outcome, claim_guard
from receiver.ledger.states import COSTS_NO_ATTEMPT, ENDS_CALL, UNFINISHED_CALLS, CallState, Move
from receiver.ledger.store import Store
from receiver.ledger.tables import ATTEMPT, CALL, EVENT, SEND

FORGOTTEN = (
    "An earlier attempt began it, and the handler does not make it any more:"
    " unless it does again, resending it as new sends nothing."
)

# The least wait for a call whose error the handler caught: it may be due, and kept from going out.
PAUSE = timedelta(seconds=5)

MEANWHILE = "The call that stood in the way ended while its attempt did."


def no_unfinished_calls() -> ColumnElement[bool]:
    """Return the condition that no call of an event's present generation is unfinished."""
    mine = and_(CALL.c.event == EVENT.c.id, CALL.c.generation == EVENT.c.generation)
    return ~exists().where(mine, CALL.c.state.in_(UNFINISHED_CALLS))


def outcome_given_calls(
    store: Store, connection: Connection, held: Claim, outcome: Outcome
) -> Outcome | None:
    """Lock a claimed event and return how its attempt really ends, given its calls.

    A parked call parks its event. A handler that returned, or caught what a call raised, waits for the call.
    Attempts used up park the event while a send is open. None when the claim is lost, and for a release while
    a send is under way: its lease must run out instead.
    """
    locked = select(EVENT.c.id).where(*claim_guard(held)).with_for_update()
    if connection.execute(locked).first() is None:
        return None
    if outcome.move == Move.RELEASE:
        return None if _has_send_under_way(store, connection, held) else outcome
    # Parking may change what is unfinished, so it comes first.
    calls = _park_abandoned(store, connection, held, outcome.move)
    parked = next((call for call in calls if call.state == CallState.PARKED), None)
    if parked:
        reason = f"Call {parked.step!r} is parked. {parked.reason or ''}".rstrip()
        return replace(outcome, move=Move.PARK, reason=reason, call=parked.id)
    if outcome.move == Move.FINISH and calls:
        now = connection.execute(select(store.now())).scalar_one()
        delay = max(min(call.due_at or now for call in calls) - now, PAUSE)
        free = all(call.outcome in COSTS_NO_ATTEMPT for call in calls)
        reason = f"The handler returned, but call {calls[0].step!r} is not finished: {calls[0].reason or ''}"
        return Outcome(Move.CALL_LATER if free else Move.RETRY_LATER, delay, reason=reason.rstrip())
    if outcome.move == Move.PARK and _has_ended_meanwhile(connection, held, outcome):
        return replace(outcome, move=Move.CALL_LATER, reason=MEANWHILE, call=None)
    return outcome


def replace_rejected(connection: Connection, call: UUID) -> None:
    """Let a rejected call's successor go out at the next attempt."""
    rejected = (CALL.c.id == call, CALL.c.state == CallState.REJECTED)
    connection.execute(update(CALL).where(*rejected).values(state=CallState.REPLACED))


def retry_calls(store: Store, connection: Connection, events: Sequence[UUID]) -> None:
    """Take up, as a person retries events, what their present generations left unfinished.

    Keys stay: whatever parked a call parks it again, unless it is mended. A rejected call, which certainly
    did not happen, gets a successor, unless the handler caught that and went on: then both ways would count.
    """
    present = select(EVENT.c.generation).where(EVENT.c.id == CALL.c.event).scalar_subquery()
    mine = CALL.c.event.in_(events), CALL.c.generation == present
    again = CALL.c.state.in_((CallState.PENDING, CallState.PARKED, CallState.GIVEN_UP))
    pending = {"state": CallState.PENDING, "trying_since": store.now(), "due_at": None, "ended_at": None}
    connection.execute(update(CALL).where(*mine, again).values(**pending))
    rejected = CALL.c.state == CallState.REJECTED
    connection.execute(update(CALL).where(*mine, rejected, is_last()).values(state=CallState.REPLACED))


def is_last() -> ColumnElement[bool]:
    """Return the condition that no call in a later place of its generation may have happened."""
    later = CALL.alias("later")
    same = and_(later.c.event == CALL.c.event, later.c.generation == CALL.c.generation)
    happened = later.c.state.not_in((CallState.REJECTED, CallState.REPLACED))
    return ~exists(select(later.c.id).where(same, later.c.position > CALL.c.position, happened))


def _park_abandoned(store: Store, connection: Connection, held: Claim, move: Move) -> Sequence[Row[Any]]:
    """Park calls that no attempt will finish any more; return the unfinished ones as they are then."""
    mine = (CALL.c.event == held.event, CALL.c.generation == held.generation)
    unfinished = select(CALL).where(*mine, CALL.c.state.in_(UNFINISHED_CALLS)).order_by(CALL.c.position)
    calls = connection.execute(unfinished).all()
    change: dict[str, Any] = {"state": CallState.PARKED, "ended_at": store.now()}
    match move:
        case Move.FINISH:
            abandoned = [call for call in calls if call.claim != held.token]
            change["reason"] = FORGOTTEN
        case Move.GIVE_UP:
            # The call's own reason stays: it says more than that the attempts are over.
            abandoned = [call for call in calls if open_until(connection, call.id)]
        case _:
            return calls
    pending = [call.id for call in abandoned if call.state == CallState.PENDING]
    if not pending:
        return calls
    connection.execute(update(CALL).where(CALL.c.id.in_(pending)).values(**change))
    return connection.execute(unfinished).all()


def _has_send_under_way(store: Store, connection: Connection, held: Claim) -> bool:
    """Whether a send of this attempt is out that may still be answered."""
    under_way = (SEND.c.claim == held.token, SEND.c.ended_at.is_(None), SEND.c.sending_until > store.now())
    mine = select(SEND.c.id).join(CALL, CALL.c.id == SEND.c.call).where(CALL.c.event == held.event)
    return connection.execute(mine.where(*under_way).limit(1)).first() is not None


def _has_ended_meanwhile(connection: Connection, held: Claim, outcome: Outcome) -> bool:
    """Whether the call that parks the event ended during the attempt: no response wakes the event later."""
    mine = (ATTEMPT.c.event == held.event, ATTEMPT.c.claim == held.token)
    begun = select(ATTEMPT.c.started_at).where(*mine).scalar_subquery()
    ended = (CALL.c.id == outcome.call, CALL.c.state.in_(ENDS_CALL.values()), CALL.c.ended_at >= begun)
    return connection.execute(select(CALL.c.id).where(*ended)).first() is not None
