"""The outbound journal: plan a call, begin a send, record its response."""

from receiver.ledger.calls.journal import Place, Planned, Wanted, plan, remember
from receiver.ledger.calls.outcome import none_unfinished, outcome_given_calls, replace_rejected, try_again
from receiver.ledger.calls.sends import (
    Answered,
    Lost,
    Mark,
    Marked,
    NotYet,
    Receipt,
    Recorded,
    Stopped,
    Terms,
    begin_send,
    record_response,
    shown_status,
)

__all__ = [
    "Answered",
    "Lost",
    "Mark",
    "Marked",
    "NotYet",
    "Place",
    "Planned",
    "Receipt",
    "Recorded",
    "Stopped",
    "Terms",
    "Wanted",
    "begin_send",
    "none_unfinished",
    "outcome_given_calls",
    "plan",
    "record_response",
    "remember",
    "replace_rejected",
    "shown_status",
    "try_again",
]
