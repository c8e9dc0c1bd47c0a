"""The states of events and calls, and the one table of an event's transitions; docs/states.md draws it.

Also here, because several packages of the ledger decide by them: the outcomes of a send, and the bounds of
revivals, reopenings and crash loops.
"""

from datetime import timedelta
from enum import StrEnum
from typing import Final


class State(StrEnum):
    """Where an event stands."""

    RECEIVED = "received"
    PROCESSING = "processing"
    WAITING = "waiting"
    DONE = "done"
    PARKED = "parked"
    DEAD = "dead"
    IGNORED = "ignored"


class Move(StrEnum):
    """Why an event changes its state: one name for each arrow of the diagram."""

    CLAIM = "claim"
    FINISH = "finish"
    RETRY_LATER = "retry later"
    CALL_LATER = "call later"
    PARK = "park"
    GIVE_UP = "give up"
    IGNORE = "ignore"
    RELEASE = "release"
    EXPIRE = "expire"
    REVIVE = "revive"
    REOPEN = "reopen"
    RETRY = "retry"
    RERUN = "rerun"
    DISCARD = "discard"
    RESOLVE = "resolve"


# States in which an event may be claimed once it is due.
UNFINISHED: Final = (State.RECEIVED, State.WAITING)

# States that an event leaves without a person.
OPEN: Final = (State.RECEIVED, State.PROCESSING, State.WAITING)

TRANSITIONS: Final[dict[Move, tuple[tuple[State, ...], State]]] = {
    # By a worker.
    Move.CLAIM: (UNFINISHED, State.PROCESSING),
    Move.FINISH: ((State.PROCESSING,), State.DONE),
    Move.RETRY_LATER: ((State.PROCESSING,), State.WAITING),
    # An API answered an outbound call with later, or still works on it: this costs no attempt.
    Move.CALL_LATER: ((State.PROCESSING,), State.WAITING),
    # Reasons to park are sentences where they are found; docs/architecture.md lists the places.
    Move.PARK: ((State.PROCESSING,), State.PARKED),
    Move.GIVE_UP: ((State.PROCESSING,), State.DEAD),
    Move.IGNORE: ((State.PROCESSING,), State.IGNORED),
    # A release gives the attempt back; an expired lease does not, and counts as a crash: the fifth parks.
    Move.RELEASE: ((State.PROCESSING,), State.WAITING),
    Move.EXPIRE: ((State.PROCESSING,), State.WAITING),
    # By a delivery, or by a worker that has a handler now.
    Move.REVIVE: ((State.DEAD,), State.WAITING),
    Move.REOPEN: ((State.IGNORED,), State.WAITING),
    # By a person. A retry keeps the generation and its keys; a rerun starts the next one.
    Move.RETRY: ((State.WAITING, State.PARKED, State.DEAD, State.IGNORED), State.WAITING),
    Move.RERUN: ((State.DONE, State.PARKED, State.DEAD), State.WAITING),
    Move.DISCARD: ((State.RECEIVED, State.WAITING, State.PARKED), State.DEAD),
    # A person, or a late answer, decided about the call that parked it.
    Move.RESOLVE: ((State.PARKED,), State.WAITING),
}

# Expired leases after which an event waits for a person: something in it kills workers.
CRASH_LIMIT = 5

# A dead event is revived by a new delivery at most this often, or a provider's retries would spin it.
REVIVAL_PAUSE = timedelta(hours=1)

# How far back a worker reopens ignored events that it has a handler for.
REOPEN_WINDOW = timedelta(hours=24)


def leaves(move: Move) -> tuple[State, ...]:
    """Return the states that a move may start from."""
    return TRANSITIONS[move][0]


def enters(move: Move) -> State:
    """Return the state that a move ends in."""
    return TRANSITIONS[move][1]


class CallState(StrEnum):
    """Where a call stands; docs/states.md draws it."""

    PENDING = "pending"
    """Not finished: it goes out, or out again, at the next attempt that may send it."""
    SUCCEEDED = "succeeded"
    """It happened, once; its stored response is returned from now on."""
    REJECTED = "rejected"
    """It certainly did not happen: the API refused it."""
    PARKED = "parked"
    """Only a person can say whether it happened, or what is to be sent."""
    REPLACED = "replaced"
    """A successor with a key of its own takes its place at the next attempt."""
    GIVEN_UP = "given up"
    """A person left it as it is, whatever became of it."""


# While one of its calls is in these, an event is not done.
UNFINISHED_CALLS: Final = (CallState.PENDING, CallState.PARKED)


class Protection(StrEnum):
    """What makes it safe to send a call again whose outcome is unknown."""

    KEYED = "keyed"
    REPEATABLE = "repeatable"
    UNPROTECTED = "unprotected"


class SendOutcome(StrEnum):
    """What one answer, or its absence, means."""

    SUCCEEDED = "succeeded"
    REPLAYED = "replayed"
    LOCKED = "locked"
    LATER = "later"
    UNKNOWN = "unknown"
    MISMATCH = "mismatch"
    REJECTED = "rejected"


# A call's latest outcomes for which waiting costs no attempt; None: nothing has gone out yet.
COSTS_NO_ATTEMPT: Final = (SendOutcome.LATER, SendOutcome.LOCKED, None)

# Outcomes that end a call, and in which state: they answer for every send of it, not for their own alone.
ENDS_CALL: Final = {
    SendOutcome.SUCCEEDED: CallState.SUCCEEDED,
    SendOutcome.REPLAYED: CallState.SUCCEEDED,
    SendOutcome.REJECTED: CallState.REJECTED,
}
