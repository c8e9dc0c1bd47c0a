"""The event's states and the one table of transitions between them; docs/states.md draws it."""

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


_S = State

FIRST: Final = (State.RECEIVED, State.PARKED)
"""States in which an event enters the ledger; parked where a person must look first."""

UNFINISHED: Final = (State.RECEIVED, State.WAITING)
"""States in which an event may be claimed once it is due."""

TRANSITIONS: Final[dict[Move, tuple[tuple[State, ...], State]]] = {
    # What a worker does.
    Move.CLAIM: (UNFINISHED, _S.PROCESSING),
    Move.FINISH: ((_S.PROCESSING,), _S.DONE),
    Move.RETRY_LATER: ((_S.PROCESSING,), _S.WAITING),
    # An outbound call was told to come later, or is still running there: it costs no attempt.
    Move.CALL_LATER: ((_S.PROCESSING,), _S.WAITING),
    Move.PARK: ((_S.PROCESSING,), _S.PARKED),
    Move.GIVE_UP: ((_S.PROCESSING,), _S.DEAD),
    Move.IGNORE: ((_S.PROCESSING,), _S.IGNORED),
    # A release gives the attempt back; an expired lease does not, and counts as a crash: the fifth parks.
    Move.RELEASE: ((_S.PROCESSING,), _S.WAITING),
    Move.EXPIRE: ((_S.PROCESSING,), _S.WAITING),
    # What a delivery or a starting worker does.
    Move.REVIVE: ((_S.DEAD,), _S.WAITING),
    Move.REOPEN: ((_S.IGNORED,), _S.WAITING),
    # What a person does. A retry keeps the generation and its keys; a rerun starts the next one.
    Move.RETRY: ((_S.WAITING, _S.PARKED, _S.DEAD, _S.IGNORED), _S.WAITING),
    Move.RERUN: ((_S.DONE, _S.PARKED, _S.DEAD), _S.WAITING),
    # A person said what became of the call that parked it, or a late answer did.
    Move.RESOLVE: ((_S.PARKED,), _S.WAITING),
    Move.DISCARD: ((_S.RECEIVED, _S.WAITING, _S.PARKED), _S.DEAD),
}


def leaves(move: Move) -> tuple[State, ...]:
    """Return the states that a move may start from."""
    return TRANSITIONS[move][0]


def enters(move: Move) -> State:
    """Return the state that a move ends in."""
    return TRANSITIONS[move][1]


# The words of the journal: a call's states, how it is protected, and what an answer can mean.


class CallState(StrEnum):
    """Where a call stands; docs/states.md draws it."""

    PENDING = "pending"
    """Not finished: it goes out, or out again, at the next attempt that may send it."""
    SUCCEEDED = "succeeded"
    """It happened, once; its stored response is returned from now on."""
    REJECTED = "rejected"
    """It certainly did not happen: the API said no."""
    PARKED = "parked"
    """Nobody but a person can say whether it happened, or what is to be sent."""
    REPLACED = "replaced"
    """A successor with a key of its own takes its place at the next attempt."""
    GIVEN_UP = "given up"
    """A person left it as it is, whatever became of it."""


UNFINISHED_CALLS: Final = (CallState.PENDING, CallState.PARKED)
"""While one of its calls is in these, an event is not done."""


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


COSTS_NO_ATTEMPT: Final = (SendOutcome.LATER, SendOutcome.LOCKED, None)
"""What a call was last told when waiting for it costs no attempt; None: nothing has gone out yet."""

ENDS_CALL: Final = {
    SendOutcome.SUCCEEDED: CallState.SUCCEEDED,
    SendOutcome.REPLAYED: CallState.SUCCEEDED,
    SendOutcome.REJECTED: CallState.REJECTED,
}
"""Outcomes that end a call, and where: they answer for every send of it, not for their own alone."""


# The claim protocol: a lease, a fencing token, and guarded UPDATEs. Zero rows is a normal outcome.


CRASH_LIMIT = 5
"""Expired leases after which an event waits for a person: something in it kills workers."""


# What a second delivery of an event leaves behind: counts, the last 20, conflicting bodies, a revival.


REVIVAL_PAUSE = timedelta(hours=1)
"""A dead event is revived by a new delivery at most this often, or a provider's retries would spin it."""


# Figures of the whole ledger, by source and by API.


OPEN = (State.RECEIVED, State.PROCESSING, State.WAITING)
"""States that an event leaves by itself."""


# What the sweeper asks of the ledger: what to nudge, what nobody fetched, what to prune.


REOPEN_WINDOW = timedelta(hours=24)
