"""The event's states and the one table of transitions between them; docs/states.md draws it."""

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
