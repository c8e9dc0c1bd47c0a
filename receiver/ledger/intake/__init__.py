"""Deliveries in: one INSERT decides which are first-seen."""

from receiver.ledger.intake.delivery import Delivery, Verdict
from receiver.ledger.intake.group_commit import GroupCommit, Recorder
from receiver.ledger.intake.recording import record

__all__ = ["Delivery", "GroupCommit", "Recorder", "Verdict", "record"]
