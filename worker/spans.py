"""Log lines and spans of attempts and sends."""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from uuid import UUID

from opentelemetry.trace import Span, SpanKind

from config.logs import about
from config.tracing import TRACEPARENT, current_traceparent, describe, span
from receiver.ledger.lease import Claim
from receiver.ledger.states import SendOutcome
from worker.calls.transport import Outgoing

log = logging.getLogger(__name__)


@contextmanager
def attempt_span(held: Claim) -> Iterator[Span]:
    """Trace an attempt. The first one is part of its delivery's trace; a later one links to it."""
    traces = {"parent": held.traceparent} if held.token == 1 else {"link": held.traceparent}
    with attempt_facts(held), span("attempt", SpanKind.CONSUMER, root=True, **traces) as opened:
        describe(opened, event=str(held.event), type=held.type, generation=held.generation, **_facts(held))
        yield opened


def attempt_facts(held: Claim) -> AbstractContextManager[None]:
    """Put an attempt's facts on the lines that are logged meanwhile."""
    return about(event=held.event, generation=held.generation, **_facts(held))


def _facts(held: Claim) -> dict[str, str | int]:
    return {"source": held.source, "event_id": held.event_id, "attempt": held.attempt}


@contextmanager
def send_span(api: str, method: str, call: UUID | None = None) -> Iterator[Span]:
    """Trace one request to an API. Its address stays out: paths and queries hold data."""
    facts = {"api": api} if call is None else {"api": api, "call": str(call)}
    with about(**facts), span(f"{method} {api}", SpanKind.CLIENT) as opened:
        describe(opened, **facts)
        yield opened


def log_outcome(opened: Span, api: str, outcome: SendOutcome) -> None:
    """Put what a send's response, or its absence, means on its span and on a line."""
    describe(opened, outcome=str(outcome))
    log.info("A send to %s: %s.", api, outcome)


def with_traceparent(request: Outgoing) -> Outgoing:
    """Return a request with the present trace, unless the handler gave it one of its own."""
    trace = current_traceparent()
    if trace is None or any(name.lower() == TRACEPARENT for name, _ in request.headers):
        return request
    return replace(request, headers=(*request.headers, (TRACEPARENT, trace)))
