"""Traces, where OpenTelemetry is installed (the extra `otel`): elsewhere nothing is imported, nothing costs.

One trace goes from a delivery through its event's first attempt to every call of that attempt.
"""

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from opentelemetry import trace
    from opentelemetry.context import Context

FOUND = importlib.util.find_spec("opentelemetry") is not None
"""Whether the extra is installed."""

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""OpenTelemetry's own variables; its SDK reads them, and the rest of its kind, by itself."""

FIELD = "traceparent"

Side = Literal["server", "client", "consumer"]


class Span(Protocol):
    """A stretch of work under way."""

    def note(self, **facts: str | int) -> None:
        """Add what is known only now; never data of an event."""


class _Untraced:
    def note(self, **facts: str | int) -> None:
        """Forget it."""


class _Traced:
    def __init__(self, span: "trace.Span") -> None:
        self._span = span

    def note(self, **facts: str | int) -> None:
        """Add facts with the prefix `firstseen.`."""
        self._span.set_attributes({f"firstseen.{name}": value for name, value in facts.items()})


UNTRACED = _Untraced()
NOWHERE: AbstractContextManager[Span] = nullcontext(UNTRACED)


def set_up_traces(service: str) -> None:
    """Send this process's spans in batches to the endpoint that the standard variable names, if any."""
    if not FOUND or not any(os.environ.get(name) for name in ENDPOINTS):
        return
    # Heavy imports, and only where the extra is installed.
    from opentelemetry import trace  # noqa: PLC0415
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def span(
    name: str, side: Side, *, parent: str | None = None, link: str | None = None, root: bool = False
) -> AbstractContextManager[Span]:
    """Open a span below `parent` (a traceparent), below the present one, or as the `root` of a new trace.

    `link` (a traceparent) is only pointed at. What cannot be read of either counts as nothing. An error that
    comes through marks the span with its type: its text may quote data.
    """
    return _open_span(name, side, parent=parent, link=link, root=root) if _recording() else NOWHERE


@contextmanager
def _open_span(
    name: str, side: Side, *, parent: str | None, link: str | None, root: bool
) -> Iterator[_Traced]:
    from opentelemetry import trace  # noqa: PLC0415 - the extra's own
    from opentelemetry.context import Context  # noqa: PLC0415

    context = _read(parent) if parent else Context() if root else None
    pointed = trace.get_current_span(_read(link)).get_span_context() if link else None
    links = [trace.Link(pointed)] if pointed and pointed.is_valid else []
    with trace.get_tracer("firstseen").start_as_current_span(
        name,
        context,
        kind=trace.SpanKind[side.upper()],
        links=links,
        record_exception=False,
        set_status_on_exception=False,
    ) as opened:
        try:
            yield _Traced(opened)
        except BaseException as error:
            opened.set_status(trace.Status(trace.StatusCode.ERROR, type(error).__qualname__))
            raise


def _read(traceparent: str | None) -> "Context":
    from opentelemetry.context import Context  # noqa: PLC0415 - the extra's own
    from opentelemetry.trace.propagation import tracecontext  # noqa: PLC0415

    return tracecontext.TraceContextTextMapPropagator().extract({FIELD: traceparent or ""}, Context())


def here() -> str | None:
    """Return the present span as W3C Trace Context writes it in `traceparent`; None where there is none."""
    if not _recording():
        return None
    from opentelemetry.trace.propagation import tracecontext  # noqa: PLC0415 - the extra's own

    carrier: dict[str, str] = {}
    tracecontext.TraceContextTextMapPropagator().inject(carrier)
    return carrier.get(FIELD)


def flush(seconds: float) -> None:
    """Send what has not been sent, in bounded time, before the process ends."""
    if not _recording():
        return
    from opentelemetry import trace  # noqa: PLC0415 - the extra's own

    force = getattr(trace.get_tracer_provider(), "force_flush", None)
    if force is not None:
        force(int(seconds * 1000))


def _recording() -> bool:
    """Say whether this process has OpenTelemetry's SDK loaded: without it, spans lead nowhere."""
    return "opentelemetry.sdk.trace" in sys.modules
