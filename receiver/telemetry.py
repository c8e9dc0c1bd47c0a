"""What every request leaves behind: an id in its log lines and its response, its time, its span, some a line.

An `Observer` begins and ends `RequestFacts`, for each request of the gateway's own and, by Flask's hooks, for
those of an application that it watches. A delivery that went as it should leaves a line at DEBUG only: the
ledger has it, and routers log it.
"""

import logging
import re
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from flask import Flask, Response, g, request
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind

from config.logs import begin, bind, unbind
from config.tracing import describe, is_on, span
from receiver.ledger.intake import Delivery, Verdict
from receiver.ledger.text import random_hex
from receiver.metrics import Instruments

log = logging.getLogger(__name__)

REQUEST_ID = "X-Request-Id"

# Ids of routers and proxies; anything else is replaced, as it stands in every line.
WELL_FORMED = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=-]{7,127}")

# Machines ask these every few seconds: they get no line.
QUIET = frozenset({"/healthz", "/readyz", "/metrics"})

# The route of a path that nothing is at: the path itself is the client's text, and may hold anything.
UNKNOWN = "unknown"

DELIVERIES = "/webhooks/<source>"


@dataclass(slots=True)
class RequestFacts:
    """The present request, from its beginning to its end."""

    request_id: str
    route: str
    method: str
    begun: float = field(default_factory=time.perf_counter)
    events: int = 0
    usual: bool = False
    """Whether it is a delivery that went as it should."""
    attributes: dict[str, str | int] = field(default_factory=dict)
    opened: AbstractContextManager[Span] | None = None
    span: Span = INVALID_SPAN

    def note_recorded(self, source: str, deliveries: Sequence[Delivery], verdicts: Sequence[Verdict]) -> None:
        """Add what it recorded to its log lines and its span."""
        self.events = len(verdicts)
        self.usual = not any(verdict.conflict for verdict in verdicts) and not any(
            delivery.problem for delivery in deliveries
        )
        if self.usual and self.span is INVALID_SPAN and not log.isEnabledFor(logging.DEBUG):
            return
        self.attributes = {"source": source, "events": len(verdicts)}
        if len(verdicts) == 1:
            (verdict,) = verdicts
            self.attributes = {
                "source": source,
                "event": str(verdict.event),
                "event_id": verdict.event_id,
                "verdict": verdict.name,
            }
        bind(**self.attributes)
        describe(self.span, **self.attributes)

    def note_refused(self, source: str, reason: str) -> None:
        """Add to its log lines why it was refused."""
        self.attributes = {"source": source, "refused": reason}
        bind(**self.attributes)


class Observer:
    """Gives each request its id, time and span, and a line to those that nothing else tells of."""

    def __init__(self, instruments: Instruments) -> None:
        self._instruments = instruments

    def begin(self, route: str, method: str, sent_id: str | None, traceparent: str | None) -> RequestFacts:
        """Begin a request with the id that a router gave it, or one of its own."""
        request_id = sent_id if sent_id and WELL_FORMED.fullmatch(sent_id) else random_hex()
        facts = RequestFacts(request_id, route, method)
        begin(request=request_id)
        if route == DELIVERIES and is_on():
            # A sender is not trusted with our traces: its own is linked to, never joined.
            facts.opened = span(f"POST {DELIVERIES}", SpanKind.SERVER, link=traceparent, root=True)
            facts.span = facts.opened.__enter__()
        return facts

    def answered(self, facts: RequestFacts, status: int) -> None:
        """Count a request by its route, status and time, and log it."""
        took = time.perf_counter() - facts.begun
        self._instruments.answered(facts.route, status, took)
        if facts.events:
            self._instruments.recorded(facts.events)
        level = logging.DEBUG if facts.usual else logging.INFO
        if facts.route not in QUIET and log.isEnabledFor(level):
            method = facts.method if facts.route != UNKNOWN else "-"
            # Bound once more: a thread that verified it bound them in a context of its own.
            bind(**facts.attributes)
            extra = {"status": status, "ms": round(took * 1000, 1)}
            log.log(level, "%s %s: %d", method, facts.route, status, extra=extra)

    def end(self, facts: RequestFacts, error: BaseException | None = None) -> None:
        """Close the request's span and forget its facts, in the context in which it began."""
        if facts.opened:
            facts.opened.__exit__(type(error) if error else None, error, None)
        unbind()

    def watch(self, app: Flask) -> None:
        """Observe every request of this application from now on."""
        app.before_request(self._begin)
        app.after_request(self._answered)
        app.teardown_request(self._end)

    def _begin(self) -> None:
        route = request.url_rule.rule if request.url_rule else UNKNOWN
        sent = request.environ.get("HTTP_X_REQUEST_ID")
        g.facts = self.begin(route, request.method, sent, request.environ.get("HTTP_TRACEPARENT"))

    def _answered(self, response: Response) -> Response:
        response.headers[REQUEST_ID] = g.facts.request_id
        self.answered(g.facts, response.status_code)
        return response

    def _end(self, error: BaseException | None) -> None:
        if facts := g.pop("facts", None):
            self.end(facts, error)
