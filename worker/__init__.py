"""The queue side: claims events from the ledger and runs their handlers."""

from worker.attempt import Dead, Event, Retry
from worker.calls.client import Calls
from worker.calls.errors import (
    CallChanged,
    CallError,
    CallLater,
    CallLocked,
    CallMismatch,
    CallParked,
    CallRefused,
    CallRejected,
    CallUnknown,
    ClaimLost,
)
from worker.registry import handles

__all__ = [
    "CallChanged",
    "CallError",
    "CallLater",
    "CallLocked",
    "CallMismatch",
    "CallParked",
    "CallRefused",
    "CallRejected",
    "CallUnknown",
    "Calls",
    "ClaimLost",
    "Dead",
    "Event",
    "Retry",
    "handles",
]
