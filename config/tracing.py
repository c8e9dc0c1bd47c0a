"""Traces, where OpenTelemetry is installed (the extra `otel`): elsewhere nothing is imported, nothing costs.

One trace goes from a delivery through its event's first attempt to every call of that attempt.
"""

import importlib.util
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, Protocol

FOUND = importlib.util.find_spec("opentelemetry") is not None
"""Whether the extra is installed."""

Side = Literal["server", "client", "consumer"]


class Span(Protocol):
    """A stretch of work under way."""

    def note(self, **facts: str | int) -> None:
        """Add what is known only now; never data of an event."""


class _Untraced:
    def note(self, **facts: str | int) -> None:
        """Forget it."""


UNTRACED = _Untraced()
NOWHERE: AbstractContextManager[Span] = nullcontext(UNTRACED)


def set_up_traces(service: str) -> None:
    """Send this process's spans where the standard OTEL_EXPORTER_OTLP_ENDPOINT says, if it says so."""
    if FOUND:
        from config import otel  # noqa: PLC0415 - the extra's own, and only where it is installed

        otel.set_up(service)


def span(
    name: str, side: Side, *, parent: str | None = None, link: str | None = None, root: bool = False
) -> AbstractContextManager[Span]:
    """Open a span below `parent` (a traceparent), below the present one, or as the `root` of a new trace.

    `link` (a traceparent) is only pointed at. What cannot be read of either counts as nothing. An error that
    comes through marks the span with its type: its text may quote data.
    """
    if not _recording():
        return NOWHERE
    from config import otel  # noqa: PLC0415 - as above

    return otel.span(name, side, parent=parent, link=link, root=root)


def flush(seconds: float) -> None:
    """Send what has not been sent, in bounded time: the process ends."""
    if FOUND:
        from config import otel  # noqa: PLC0415 - as above

        otel.flush(seconds)


def here() -> str | None:
    """Return the present span as W3C Trace Context writes it in `traceparent`; None where there is none."""
    if not _recording():
        return None
    from config import otel  # noqa: PLC0415 - as above

    return otel.here()


def _recording() -> bool:
    """Say whether this process has OpenTelemetry's SDK loaded: without it, spans lead nowhere."""
    return "opentelemetry.sdk.trace" in sys.modules
