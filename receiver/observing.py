"""What every request leaves behind: an id on its lines and its answer, one line, its time and its span."""

import logging
import re
import time
from collections.abc import Sequence
from contextlib import ExitStack
from uuid import uuid4

from flask import Flask, Response, g, request

from config.logs import bind, unbind
from config.tracing import span
from receiver.instruments import Instruments
from receiver.ledger import Verdict

log = logging.getLogger(__name__)

REQUEST_ID = "X-Request-Id"
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
        unbind()
        given = request.headers.get(REQUEST_ID, "")
        g.begun = time.perf_counter()
        g.request_id = given if WELL_FORMED.fullmatch(given) else uuid4().hex
        bind(request=g.request_id)
        g.observed = ExitStack()
        if _route() == DELIVERIES:
            # A sender is not to be trusted with our traces: it is pointed at, never joined.
            sender = request.headers.get("traceparent")
            g.span = g.observed.enter_context(span(f"POST {DELIVERIES}", "server", link=sender, root=True))

    def _answered(self, response: Response) -> Response:
        route, took = _route(), time.perf_counter() - g.begun
        response.headers[REQUEST_ID] = g.request_id
        self._instruments.answers.labels(route, str(response.status_code)).observe(took)
        if events := g.get("events"):
            self._instruments.batches.observe(events)
        if route not in QUIET:
            extra = {"status": response.status_code, "ms": round(took * 1000, 1)}
            method = request.method if route != UNKNOWN else "-"
            log.info("%s %s: %d", method, route, response.status_code, extra=extra)
        return response

    def _end(self, _error: BaseException | None) -> None:
        if observed := g.pop("observed", None):
            observed.close()
        unbind()


def note_recorded(source: str, verdicts: Sequence[Verdict]) -> None:
    """Say what the present request recorded: its event stands on its lines and in its span."""
    g.events = len(verdicts)
    facts: dict[str, str | int] = {"source": source, "events": len(verdicts)}
    if len(verdicts) == 1:
        (one,) = verdicts
        facts = {"source": source, "event": str(one.event), "event_id": one.event_id, "verdict": one.name}
    bind(**facts)
    if "span" in g:
        g.span.note(**facts)


def note_refused(source: str, reason: str) -> None:
    """Say why the present request was refused."""
    bind(source=source, refused=reason)


def _route() -> str:
    return request.url_rule.rule if request.url_rule else UNKNOWN
