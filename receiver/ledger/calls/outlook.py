"""What becomes of a call next, and what each thing that a person may say of it would do."""

from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from sqlalchemy import Connection, Row, exists, select

from receiver.ledger.calls.models import CALL, SEND
from receiver.ledger.calls.states import ENDS_CALL, UNFINISHED_CALLS, CallState, Protection, SendOutcome
from receiver.ledger.states import State

DECIDES = {
    State.PARKED: UNFINISHED_CALLS,
    State.WAITING: UNFINISHED_CALLS,
    State.DEAD: (CallState.REJECTED,),
}
"""In which of its states a call decides what happens next to an event in this one."""


class Deciding(Protocol):
    """The part of a call's row that tells what happens next."""

    id: UUID
    step: str
    state: Any
    api: str
    outcome: Any
    protection: Any
    sends: int
    shares: UUID | None
    changed_to: str | None
    use_stored: bool
    quiet_until: datetime | None
    expires_at: datetime | None
    is_open: bool


def is_open() -> Any:
    """Return the column that says whether a send of the call may have been executed."""
    return exists(select(SEND.c.id).where(SEND.c.call == CALL.c.id, SEND.c.open)).label("is_open")


def deciding(connection: Connection, event: Row[Any]) -> Row[Any] | None:
    """Return the call that decides what happens next to an event, if one does."""
    states = DECIDES.get(State(event.state))
    if states is None or (event.state == State.PARKED and event.parked_call is None):
        return None
    mine = [CALL.c.event == event.id, CALL.c.generation == event.generation, CALL.c.state.in_(states)]
    if event.state == State.PARKED:
        mine.append(CALL.c.id == event.parked_call)
    chosen = select(CALL, is_open()).where(*mine).order_by(CALL.c.position, CALL.c.successor)
    return connection.execute(chosen.limit(1)).first()


def choices(call: Deciding, now: datetime) -> str:
    """Say what is known of a call that waits for a person, and what each resolution does."""
    twice = ", so it happens twice if it did happen" if call.is_open else ""
    not_before = ""
    if call.quiet_until and call.quiet_until > now:
        not_before = f", not before {_time(call.quiet_until)}"
    ways = [f"`firstseen call resolve {call.id} --happened` lets the handler go on with the answer you give"]
    if call.changed_to and not call.use_stored:
        ways.append("`--use-stored` sends the stored bytes under the stored key")
    # Not "it": the handler may make another call in its place by now.
    again = "sends what the handler asks for now in its place, under a new key"
    if call.shares:
        again = f"waits anew for the call {call.shares} of another event, unless that has ended"
    ways += [f"`--resend-as-new` {again}{twice}{not_before}", "`--give-up` ends the event"]
    return f"{_known(call)} {'; '.join(ways)}."


def prospect(event_state: Any, call: Deciding, now: datetime) -> str:
    """Say what the next attempt, or a retry, does with the call that decides."""
    if event_state == State.DEAD:
        return f"A retry sends its rejected call {call.step!r} as a successor, under a new key."
    if call.shares:
        return f"Its call {call.step!r} waits for another event's call with the same `once`."
    if call.state == CallState.PARKED:
        return f"Its call {call.step!r} is parked."
    if call.is_open and call.expires_at and call.expires_at <= now:
        return f"Its call {call.step!r} parks then: it may have happened, and its key's life is over."
    again = "again " if call.sends else ""
    key = ", under the same key" if call.sends and call.protection == Protection.KEYED else ""
    return f"Its call {call.step!r} waits, and goes out {again}then{key}."


def call_outlook(call: Row[Any], event: Row[Any]) -> str:
    """Say what happens next to a call, given its event; a row of both has `now`."""
    state = CallState(call.state)
    if state in UNFINISHED_CALLS and call.generation != event.generation:
        return f"Nothing: its event is in generation {event.generation} now."
    if state in UNFINISHED_CALLS and event.state == State.PARKED:
        return choices(call, call.now)
    if state == CallState.PENDING and call.shares:
        return f"It waits for the call {call.shares} of another event."
    return _NEXT[state]


_NEXT = {
    CallState.PENDING: "It goes out at an attempt of its event, once it may.",
    CallState.SUCCEEDED: "Nothing: whoever makes it again gets its stored answer.",
    CallState.REJECTED: "Nothing: it did not happen. A retry of its event sends a successor with a new key.",
    CallState.PARKED: "Its event parks as soon as the attempt that runs now ends; then it can be resolved.",
    CallState.REPLACED: "Nothing: a successor with a key of its own takes its place.",
    CallState.GIVEN_UP: "Nothing: it was given up. A retry of its event takes it up again.",
}


def _known(call: Deciding) -> str:
    if call.outcome is not None and ENDS_CALL.get(SendOutcome(call.outcome)) == CallState.SUCCEEDED:
        return "It happened."
    if call.is_open:
        return f"Nobody knows whether it happened: look at {call.api}."
    if call.shares:
        return f"Nobody knows whether it happened: that is the matter of the call {call.shares}."
    if call.outcome == SendOutcome.MISMATCH:
        return f"Its key belongs to another request there: look at {call.api}."
    return "It has not happened, as far as its answers tell."


def _time(at: datetime) -> str:
    return at.isoformat(timespec="seconds").replace("+00:00", "Z")
