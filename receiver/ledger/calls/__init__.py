"""The outbound journal: plan a call, begin a send, record its response."""

from receiver.ledger.calls.journal import (
    CallRequest,
    PlannedCall,
    begin_first_send,
    compute_once,
    plan,
)
from receiver.ledger.calls.outcome import (
    no_unfinished_calls,
    outcome_given_calls,
    replace_rejected,
    retry_calls,
)
from receiver.ledger.calls.sends import (
    CallNotPending,
    CallUpdate,
    Classification,
    LeaseLost,
    SendBegun,
    SendContext,
    SendPolicy,
    SendResult,
    SendTooEarly,
    StoredResponse,
    begin_send,
    record_response,
    status_for_handler,
)

__all__ = [
    "CallNotPending",
    "CallRequest",
    "CallUpdate",
    "Classification",
    "LeaseLost",
    "PlannedCall",
    "SendBegun",
    "SendContext",
    "SendPolicy",
    "SendResult",
    "SendTooEarly",
    "StoredResponse",
    "begin_first_send",
    "begin_send",
    "compute_once",
    "no_unfinished_calls",
    "outcome_given_calls",
    "plan",
    "record_response",
    "replace_rejected",
    "retry_calls",
    "status_for_handler",
]
