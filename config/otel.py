"""What `tracing.py` promises, on OpenTelemetry's API; its SDK is loaded only when spans go somewhere."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""OpenTelemetry's own variables; its SDK reads them, and the rest of its kind, by itself."""

FIELD = "traceparent"
KINDS = {"server": SpanKind.SERVER, "client": SpanKind.CLIENT, "consumer": SpanKind.CONSUMER}
_W3C = TraceContextTextMapPropagator()


class Traced:
    """A span as `tracing.Span` has it: facts get the prefix `firstseen.`."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def note(self, **facts: str | int) -> None:
        """Add facts."""
        self._span.set_attributes({f"firstseen.{name}": value for name, value in facts.items()})


def set_up(service: str) -> None:
    """Export spans in batches, if an endpoint is named and nobody has set up a provider before."""
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - heavy
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


@contextmanager
def span(name: str, side: str, *, parent: str | None, link: str | None, root: bool) -> Iterator[Traced]:
    """Open a span; see `tracing.span`."""
    context = _read(parent) if parent else Context() if root else None
    pointed = trace.get_current_span(_read(link)).get_span_context() if link else None
    links = [Link(pointed)] if pointed and pointed.is_valid else []
    with trace.get_tracer("firstseen").start_as_current_span(
        name,
        context,
        kind=KINDS[side],
        links=links,
        record_exception=False,
        set_status_on_exception=False,
    ) as opened:
        try:
            yield Traced(opened)
        except BaseException as error:
            opened.set_status(Status(StatusCode.ERROR, type(error).__qualname__))
            raise


def flush(seconds: float) -> None:
    """Send what waits in the provider, if it is one that keeps spans."""
    force = getattr(trace.get_tracer_provider(), "force_flush", None)
    if force is not None:
        force(int(seconds * 1000))


def here() -> str | None:
    """Return the present traceparent."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return carrier.get(FIELD)


def _read(traceparent: str | None) -> Context:
    return _W3C.extract({FIELD: traceparent or ""}, Context())
