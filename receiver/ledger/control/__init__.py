"""What people do: retry, rerun, discard, promote, resolve, bulk operations."""

from receiver.ledger.control.actions import ActionResult, discard, promote, rerun, retry
from receiver.ledger.control.bulk import (
    BulkStep,
    bulk_candidates,
    bulk_progress,
    plan_bulk,
    step_bulk,
    unfinished_bulk,
)
from receiver.ledger.control.resolution import Resolution, resolve

__all__ = [
    "ActionResult",
    "BulkStep",
    "Resolution",
    "bulk_candidates",
    "bulk_progress",
    "discard",
    "plan_bulk",
    "promote",
    "rerun",
    "resolve",
    "retry",
    "step_bulk",
    "unfinished_bulk",
]
