"""How what the ledger and the engine refuse is answered: a status and a stable kind each."""

from flask import Response

from receiver.idempotency import Refusal
from receiver.ledger.errors import (
    BadCursor,
    LedgerError,
    NotAllowed,
    UnknownCall,
    UnknownEvent,
    UnknownReplay,
)
from receiver.problems import Problem, answer_problem, unavailable

_KINDS: tuple[tuple[type[LedgerError], int, str, str], ...] = (
    (UnknownEvent, 404, "unknown-event", " GET /v1/events lists those there are."),
    (UnknownReplay, 404, "unknown-replay", " POST /v1/replays starts one and says its id."),
    (UnknownCall, 404, "unknown-call", " GET /v1/calls lists those there are."),
    (BadCursor, 422, "bad-cursor", ""),
    (NotAllowed, 409, "not-allowed", ""),
)


def answer_ledger_error(error: LedgerError) -> Response:
    """Answer what the ledger could not do; 503 for all but its definite refusals."""
    for kind, status, name, advice in _KINDS:
        if isinstance(error, kind):
            return answer_problem(Problem(status, name, f"{error}{advice}"))
    return answer_problem(
        unavailable("The ledger does not answer. Send it again, with the same Idempotency-Key if it has one.")
    )


def answer_refusal(refusal: Refusal) -> Response:
    """Answer what the idempotency engine refuses; its code is the problem's kind."""
    headers = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
    return answer_problem(Problem(refusal.status, refusal.code, refusal.detail, headers))
