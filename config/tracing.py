"""Traces by OpenTelemetry's API; its SDK (the extra `otel`) records them where an endpoint is set.

One trace goes from a delivery through its event's first attempt to every call of that attempt. Spans are
OpenTelemetry's own; here is only what all of ours have in common.
"""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

# OpenTelemetry's own variables; its SDK reads them, and the rest of its kind, by itself.
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

TRACEPARENT = "traceparent"

_tracer = trace.get_tracer("firstseen")
_propagator = TraceContextTextMapPropagator()


def set_up_traces(service: str) -> None:
    """Send this process's spans in batches to the endpoint that the standard variable names, if any."""
    if not any(os.environ.get(name) for name in ENDPOINTS) or not importlib.util.find_spec(
        "opentelemetry.sdk"
    ):
        return
    # Heavy imports, and only where the extra is installed.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def is_on() -> bool:
    """Whether spans are recorded. Without an SDK the API's own no-ops would do, at ten times this cost."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


@contextmanager
def span(
    name: str,
    kind: trace.SpanKind,
    *,
    parent: str | None = None,
    link: str | None = None,
    root: bool = False,
) -> Iterator[trace.Span]:
    """Open a span below `parent` (a traceparent), below the present one, or as the `root` of a new trace.

    `link` (a traceparent) is only pointed at. A traceparent that cannot be read counts as none. An error that
    passes through marks the span with its type.
    """
    if not is_on():
        yield trace.INVALID_SPAN
        return
    context = _context(parent) if parent else Context() if root else None
    linked = trace.get_current_span(_context(link)).get_span_context()
    links = [trace.Link(linked)] if linked.is_valid else []
    # The text of an error may quote data, and OpenTelemetry would record it.
    with _tracer.start_as_current_span(
        name, context, kind, links=links, record_exception=False, set_status_on_exception=False
    ) as opened:
        try:
            yield opened
        except BaseException as error:
            opened.set_status(trace.Status(trace.StatusCode.ERROR, type(error).__qualname__))
            raise


def describe(opened: trace.Span, **facts: str | int) -> None:
    """Add attributes, named `firstseen.<fact>`, to a span; never data of an event."""
    opened.set_attributes({f"firstseen.{name}": value for name, value in facts.items()})


def current_traceparent() -> str | None:
    """Return the present span as W3C Trace Context writes it; None where there is none."""
    if not is_on():
        return None
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier.get(TRACEPARENT)


def flush(seconds: float) -> None:
    """Send what has not been sent, in bounded time, before the process ends."""
    # The method is the SDK's: the API's providers have nothing to send.
    if force_flush := getattr(trace.get_tracer_provider(), "force_flush", None):
        force_flush(int(seconds * 1000))


def _context(traceparent: str | None) -> Context:
    return _propagator.extract({TRACEPARENT: traceparent or ""}, Context())
