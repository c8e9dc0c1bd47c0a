"""The words of the journal: a call's states, how it is protected, and what an answer can mean."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final


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


@dataclass(frozen=True)
class Standing:
    """What the ledger knows at the moment when an answer is recorded."""

    open_before: bool
    """Whether another send of this call may have been executed."""
    live: bool
    """Whether a key protects the call and its life, less the margin, is not over."""
    protection: Protection
    method: str
    path: str = ""
    """The URL's, without its query."""


@dataclass(frozen=True)
class Judgement:
    """What an answer means for the call and the send that it answers."""

    outcome: SendOutcome
    park: bool = False
    """Whether a person must look before anything is sent again."""
    open: bool = False
    """Whether this send may have been executed all the same."""
    retry_after: timedelta | None = None
    reason: str = ""
    """One sentence for people, without any of the answer's body."""


Judge = Callable[[Standing, datetime], Judgement]
"""Classifies one answer, given what the ledger knows and its time; pure."""
