"""What people do: retry, rerun, discard, promote, resolve, bulk operations."""

from receiver.ledger.control.actions import Acted, Promoted, discard, promote, rerun, retry
from receiver.ledger.control.bulk import Stepped, candidates, plan, progress, step, unfinished
from receiver.ledger.control.resolution import Resolution, StatedResponse, resolve

__all__ = [
    "Acted",
    "Promoted",
    "Resolution",
    "StatedResponse",
    "Stepped",
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
