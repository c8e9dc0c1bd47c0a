"""The queue side: claims events from the ledger and runs their handlers."""

from worker.events import Event
from worker.outcomes import Dead, Retry
from worker.registry import handles

__all__ = ["Dead", "Event", "Retry", "handles"]
