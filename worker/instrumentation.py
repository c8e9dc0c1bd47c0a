"""What an attempt and each of its sends leave behind: facts on their lines, a line, and a span."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from uuid import UUID

from opentelemetry.trace import Span, SpanKind

from config.logs import about
from config.tracing import TRACEPARENT, current_traceparent, describe, span
from receiver.ledger.lease import Claim
from worker.calls.transport import Outgoing

log = logging.getLogger(__name__)


@contextmanager
def watched(held: Claim) -> Iterator[Span]:
    """Watch an attempt. The first is part of its delivery's trace; one that comes later links to it."""
    first = held.token == 1
    traces = {"parent": held.traceparent} if first else {"link": held.traceparent}
    with concerning(held), span("attempt", SpanKind.CONSUMER, root=True, **traces) as seen:
        describe(seen, event=str(held.event), type=held.type, generation=held.generation, **_facts(held))
        yield seen


@contextmanager
def concerning(held: Claim) -> Iterator[None]:
    """Put an attempt's facts on the lines that are logged meanwhile."""
    with about(event=held.event, generation=held.generation, **_facts(held)):
        yield


def _facts(held: Claim) -> dict[str, str | int]:
    return {"source": held.source, "event_id": held.event_id, "attempt": held.attempt}


@contextmanager
def watched_send(api: str, method: str, call: UUID | None = None) -> Iterator[Span]:
    """Watch one request on its way to an API. Its address stays out: paths and queries hold data."""
    facts = {"api": api} if call is None else {"api": api, "call": str(call)}
    with about(**facts), span(f"{method} {api}", SpanKind.CLIENT) as seen:
        describe(seen, **facts)
        yield seen


def came_back(seen: Span, api: str, outcome: str) -> None:
    """Say what a send's answer, or its absence, means."""
    describe(seen, outcome=str(outcome))
    log.info("A send to %s: %s.", api, outcome)


def traced(request: Outgoing) -> Outgoing:
    """Return a request with the present trace, unless the handler gave it one of its own."""
    trace = current_traceparent()
    if trace is None or any(name.lower() == TRACEPARENT for name, _ in request.headers):
        return request
    return replace(request, headers=(*request.headers, (TRACEPARENT, trace)))
