"""What happens next to an event or a call, when and why, in one sentence or two for each state.

`outlook` tells it of an event and `call_outlook` of a call, from their rows. `deciding` finds the call that
decides it for an event: the one it is parked for, waits for, or died of.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, exists, select

from receiver.ledger.states import (
    ENDS_CALL,
    REOPEN_WINDOW,
    REVIVAL_PAUSE,
    UNFINISHED_CALLS,
    CallState,
    Protection,
    SendOutcome,
    State,
)
from receiver.ledger.tables import CALL, SEND
from receiver.ledger.text import rfc3339

# In which of its states a call decides what happens next to an event in this one.
DECIDES: Final[Mapping[State, tuple[CallState, ...]]] = {
    State.PARKED: UNFINISHED_CALLS,
    State.WAITING: UNFINISHED_CALLS,
    State.DEAD: (CallState.REJECTED,),
}

ERASED = "Its payload is erased, so it cannot run again; the id stays, to tell duplicates."

# What happens next to a call whose event is not parked for it.
CALL_OUTLOOKS: Final[Mapping[CallState, str]] = {
    CallState.PENDING: "It goes out at an attempt of its event, once it may.",
    CallState.SUCCEEDED: "Nothing: whoever makes it again gets its stored answer.",
    CallState.REJECTED: "Nothing: it did not happen. A retry of its event sends a successor with a new key.",
    CallState.PARKED: "Its event parks as soon as the attempt that runs now ends; then it can be resolved.",
    CallState.REPLACED: "Nothing: a successor with a key of its own takes its place.",
    CallState.GIVEN_UP: "Nothing: it was given up. A retry of its event takes it up again.",
}


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


def outlook(event: Row[Any], now: datetime, call: Row[Any] | None = None) -> str:
    """Say what happens next, when and why, at the ledger's time `now`; `call` is the one that decides it."""
    # An event that cannot run again takes no call up.
    if call is None or (event.state == State.DEAD and (event.discarded or event.body is None)):
        return _event_outlook(event, now)
    if event.state == State.PARKED:
        return f"Nothing until a person resolves its call.{_because(event)} {_choices(call, now)}"
    return f"{_event_outlook(event, now)} {_prospect(event.state, call, now)}"


def call_outlook(call: Row[Any], event: Row[Any]) -> str:
    """Say what happens next to a call, given its event; `call.now` is the ledger's time."""
    state = CallState(call.state)
    if state in UNFINISHED_CALLS and call.generation != event.generation:
        return f"Nothing: its event is in generation {event.generation} now."
    if state in UNFINISHED_CALLS and event.state == State.PARKED:
        return _choices(call, call.now)
    if state == CallState.PENDING and call.shares:
        return f"It waits for the call {call.shares} of another event."
    return CALL_OUTLOOKS[state]


def _event_outlook(event: Row[Any], now: datetime) -> str:
    """Say what happens next to an event that no call decides about."""
    match State(event.state):
        case State.RECEIVED:
            since = f"{_time(event.due_at)}{_nudged(event)}"
            return f"Runs as soon as a worker is free; it waits since {since}."
        case State.PROCESSING:
            return _running(event, now)
        case State.WAITING:
            return _waiting(event, now)
        case State.DONE:
            hope = f"A rerun would start generation {event.generation + 1}."
            return f"Nothing: it is done. {ERASED if event.body is None else hope}"
        case State.PARKED:
            return f"Nothing until a person retries, reruns or discards it.{_because(event)}"
        case State.DEAD:
            return _dead(event, now)
        case State.IGNORED:
            return _ignored(event, now)


def _running(event: Row[Any], now: datetime) -> str:
    lease = event.lease_until or now
    if lease <= now:
        return f"Another worker takes it over: the lease of attempt {event.attempts} ended at {_time(lease)}."
    return (
        f"A worker runs attempt {event.attempts} now; if it vanishes, another one takes over"
        f" when its lease ends at {_time(lease)}."
    )


def _waiting(event: Row[Any], now: datetime) -> str:
    number = event.attempts + 1
    if event.due_at <= now:
        since = f"{_time(event.due_at)}{_nudged(event)}"
        return f"Attempt {number} runs as soon as a worker is free; it is due since {since}."
    seconds = int((event.due_at - now).total_seconds())
    units = ((86_400, "d"), (3600, "h"), (60, "min"))
    # From two of a unit on: 90 s say more than 1 min.
    size, unit = next((pair for pair in units if seconds >= pair[0] * 2), (1, "s"))
    when = f"{_time(event.due_at)}, in {seconds // size} {unit}"
    return f"Attempt {number} runs at {when}.{_because(event)}"


def _dead(event: Row[Any], now: datetime) -> str:
    if event.discarded:
        return f"Nothing, not even at a new delivery.{_because(event)}"
    revival = (event.revived_at + REVIVAL_PAUSE) if event.revived_at else now
    when = "a new delivery" if revival <= now else f"a delivery after {_time(revival)}"
    hope = ERASED if event.body is None else f"A retry, a rerun or {when} runs it again."
    return f"Nothing by itself.{_because(event)} {hope}"


def _ignored(event: Row[Any], now: datetime) -> str:
    until = (event.finished_at or now) + REOPEN_WINDOW
    if until <= now:
        hope = ERASED if event.body is None else "Once one does, retry it."
        return f"Nothing: no handler takes {event.type}. {hope}"
    when = f"before {_time(until)}"
    return f"A worker that starts {when} with a handler for {event.type} runs it; later, retry it."


def _prospect(event_state: Any, call: Row[Any], now: datetime) -> str:
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


def _choices(call: Row[Any], now: datetime) -> str:
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


def _known(call: Row[Any]) -> str:
    if call.outcome is not None and ENDS_CALL.get(SendOutcome(call.outcome)) == CallState.SUCCEEDED:
        return "It happened."
    if call.is_open:
        return f"Nobody knows whether it happened: look at {call.api}."
    if call.shares:
        return f"Nobody knows whether it happened: that is the matter of the call {call.shares}."
    if call.outcome == SendOutcome.MISMATCH:
        return f"Its key belongs to another request there: look at {call.api}."
    return "It has not happened, as far as its answers tell."


def _because(event: Row[Any]) -> str:
    if not event.reason:
        return ""
    return f" {event.reason}" if event.reason.endswith((".", "!", "?")) else f" {event.reason}."


def _nudged(event: Row[Any]) -> str:
    return f" and was nudged {event.nudges} times" if event.nudges > 1 else ""


def _time(at: datetime) -> str:
    return rfc3339(at, "seconds")
