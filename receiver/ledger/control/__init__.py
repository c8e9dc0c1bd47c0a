"""What people do: retry, rerun, discard, promote, resolve, bulk operations."""

from receiver.ledger.control.actions import Acted, discard, promote, rerun, retry
from receiver.ledger.control.bulk import candidates, plan, progress, step, unfinished
from receiver.ledger.control.resolution import Resolution, StatedResponse, resolve

__all__ = [
    "Acted",
    "Resolution",
    "StatedResponse",
    "candidates",
    "discard",
    "plan",
    "progress",
    "promote",
    "rerun",
    "resolve",
    "retry",
    "step",
    "unfinished",
]
