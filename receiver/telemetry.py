"""What every request leaves behind: an id on its lines and its answer, one line, its time and its span."""

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

REQUEST_ID, REQUEST_ID_GIVEN = "X-Request-Id", "HTTP_X_REQUEST_ID"

WELL_FORMED = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=-]{7,127}")
"""Ids of routers and proxies; anything else is replaced, as it stands in every line."""

QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked every few seconds by machines: no line for these."""

UNKNOWN = "unknown"
"""Stands for a path that nothing is at: whoever asks for it chooses it, and it may hold anything."""

DELIVERIES = "/webhooks/<source>"


class Observer:
    """Watches every request of an application."""

    def __init__(self, instruments: Instruments) -> None:
        self._instruments = instruments

    def watch(self, app: Flask) -> None:
        """Begin to watch."""
        app.before_request(self._begin)
        app.after_request(self._answered)
        app.teardown_request(self._end)

    def _begin(self) -> None:
        given = request.environ.get(REQUEST_ID_GIVEN)
        route = request.url_rule.rule if request.url_rule else UNKNOWN
        request_id = given if given and WELL_FORMED.fullmatch(given) else os.urandom(16).hex()
        seen = g.seen = RequestFacts(request_id, route, request.method)
        begin(request=request_id)
        if route == DELIVERIES:
            # A sender is not to be trusted with our traces: it is pointed at, never joined.
            sender = request.environ.get("HTTP_TRACEPARENT")
            seen.opened = span(f"POST {DELIVERIES}", SpanKind.SERVER, link=sender, root=True)
            seen.span = seen.opened.__enter__()

    def _answered(self, response: Response) -> Response:
        seen: RequestFacts = g.seen
        took, status = time.perf_counter() - seen.begun, response.status_code
        response.headers[REQUEST_ID] = seen.request_id
        self._instruments.answered(seen.route, status, took)
        if seen.events:
            self._instruments.batches.observe(seen.events)
        if seen.route not in QUIET:
            extra = {"status": status, "ms": round(took * 1000, 1)}
            method = seen.method if seen.route != UNKNOWN else "-"
            log.info("%s %s: %d", method, seen.route, status, extra=extra)
        return response

    def _end(self, error: BaseException | None) -> None:
        seen: RequestFacts | None = g.pop("seen", None)
        if seen and seen.opened:
            seen.opened.__exit__(type(error) if error else None, error, None)
        unbind()


@dataclass(slots=True)
class RequestFacts:
    """What is known of the present request."""

    request_id: str
    route: str
    method: str
    begun: float = field(default_factory=time.perf_counter)
    events: int = 0
    opened: AbstractContextManager[Span] | None = None
    span: Span = INVALID_SPAN


def note_recorded(source: str, verdicts: Sequence[Verdict]) -> None:
    """Say what the present request recorded: its event stands on its lines and in its span."""
    seen: RequestFacts = g.seen
    seen.events = len(verdicts)
    facts: dict[str, str | int] = {"source": source, "events": len(verdicts)}
    if len(verdicts) == 1:
        (one,) = verdicts
        facts = {"source": source, "event": str(one.event), "event_id": one.event_id, "verdict": one.name}
    bind(**facts)
    describe(seen.span, **facts)


def note_refused(source: str, reason: str) -> None:
    """Say why the present request was refused."""
    bind(source=source, refused=reason)
