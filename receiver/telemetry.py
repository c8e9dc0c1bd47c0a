"""What every request leaves behind: an id in its log lines and its response, a line, its time and its span.

An `Observer` watches an application; views add what they know with `note_recorded` and `note_refused`.
"""

import logging
import os
import re
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from flask import Flask, Response, g, request
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind

from config.logs import begin, bind, unbind
from config.tracing import describe, span
from receiver.ledger.intake import Verdict
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
    """The present request, in `g.facts` from its beginning to its end."""

    request_id: str
    route: str
    method: str
    begun: float = field(default_factory=time.perf_counter)
    events: int = 0
    opened: AbstractContextManager[Span] | None = None
    span: Span = INVALID_SPAN


class Observer:
    """Gives each request of an application its id, line, time and span."""

    def __init__(self, instruments: Instruments) -> None:
        self._instruments = instruments

    def watch(self, app: Flask) -> None:
        """Observe every request of this application from now on."""
        app.before_request(self._begin)
        app.after_request(self._answered)
        app.teardown_request(self._end)

    def _begin(self) -> None:
        sent = request.environ.get("HTTP_X_REQUEST_ID")
        route = request.url_rule.rule if request.url_rule else UNKNOWN
        request_id = sent if sent and WELL_FORMED.fullmatch(sent) else os.urandom(16).hex()
        facts = g.facts = RequestFacts(request_id, route, request.method)
        begin(request=request_id)
        if route == DELIVERIES:
            # A sender is not trusted with our traces: its own is linked to, never joined.
            sender = request.environ.get("HTTP_TRACEPARENT")
            facts.opened = span(f"POST {DELIVERIES}", SpanKind.SERVER, link=sender, root=True)
            facts.span = facts.opened.__enter__()

    def _answered(self, response: Response) -> Response:
        facts: RequestFacts = g.facts
        took, status = time.perf_counter() - facts.begun, response.status_code
        response.headers[REQUEST_ID] = facts.request_id
        self._instruments.answered(facts.route, status, took)
        if facts.events:
            self._instruments.batches.observe(facts.events)
        if facts.route not in QUIET:
            extra = {"status": status, "ms": round(took * 1000, 1)}
            method = facts.method if facts.route != UNKNOWN else "-"
            log.info("%s %s: %d", method, facts.route, status, extra=extra)
        return response

    def _end(self, error: BaseException | None) -> None:
        facts: RequestFacts | None = g.pop("facts", None)
        if facts and facts.opened:
            facts.opened.__exit__(type(error) if error else None, error, None)
        unbind()


def note_recorded(source: str, verdicts: Sequence[Verdict]) -> None:
    """Add what the present request recorded to its log lines and its span."""
    facts: RequestFacts = g.facts
    facts.events = len(verdicts)
    attributes: dict[str, str | int] = {"source": source, "events": len(verdicts)}
    if len(verdicts) == 1:
        (verdict,) = verdicts
        attributes = {
            "source": source,
            "event": str(verdict.event),
            "event_id": verdict.event_id,
            "verdict": verdict.name,
        }
    bind(**attributes)
    describe(facts.span, **attributes)


def note_refused(source: str, reason: str) -> None:
    """Add to the present request's log lines why it was refused."""
    bind(source=source, refused=reason)
