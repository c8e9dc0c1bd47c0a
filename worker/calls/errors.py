"""What a call can raise. A handler may catch `CallRejected`; the rest is best left to the worker."""

from datetime import timedelta
from uuid import UUID

import httpx


class CallError(Exception):
    """A call did not return a response. `call` is its id in the ledger, where it has one."""

    def __init__(self, reason: str, call: UUID | None = None) -> None:
        super().__init__(reason)
        self.call = call


class CallRefused(CallError, ValueError):
    """The call was asked for in a way that is never sent: a wrong path, header or body, or no protection."""


class CallLater(CallError):
    """The call is made later, by another attempt, and this one does not count; `delay` says when."""

    def __init__(self, reason: str, delay: timedelta, call: UUID | None = None) -> None:
        super().__init__(reason, call)
        self.delay = delay


class CallLocked(CallLater):
    """An earlier send of this call still runs there."""


class CallUnknown(CallLater):
    """Nobody knows yet whether the call happened; it is sent again under its key. The attempt counts."""


class CallRejected(CallError):
    """The API refused the call, and it certainly did not happen. `response` is the API's answer."""

    def __init__(self, reason: str, response: httpx.Response, call: UUID | None = None) -> None:
        super().__init__(reason, call)
        self.response = response


class CallParked(CallError):
    """The call needs a person, and so does its event."""


class CallMismatch(CallParked):
    """The API says that the key was used for another request."""


class CallChanged(CallParked):
    """The handler asks for another call than the attempt that began this generation; nothing was sent."""


class ClaimLost(CallError):
    """Another worker may run this event by now: this attempt may send nothing any more."""
