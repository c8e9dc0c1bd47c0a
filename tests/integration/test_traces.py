"""One trace from a delivery through its event's attempt to each call, with OpenTelemetry's own exporter."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from config.apis import load_apis
from config.dialects import load_dialects
from config.tracing import ENDPOINTS
from receiver.ledger.store import Store
from tests.integration.conftest import Serve
from tests.services.checkout import CHECKOUT
from tests.services.databases import Databases, driver_url
from tests.services.deployment import SOURCES
from tests.services.ledger import Ledger
from tests.services.listener import Listener
from tests.services.signing import STRIPE_SECRET, stripe_delivery, stripe_event
from worker import Dead, Retry
from worker.attempt import AttemptPolicy, attempt
from worker.calls.client import Calls
from worker.calls.perform import CallContext
from worker.calls.transport import HttpTransport
from worker.registry import Handler, Registry
from worker.runner import Limits, Runner

STRANGER = f"00-{'a' * 32}-{'b' * 16}-01"
LEASE = timedelta(seconds=60)
APIS = """
[shop]
base_url = "{url}"
dialect = "ietf"
auth = {{ type = "header", name = "X-Key", value_env = "SHOP_KEY" }}
"""

Deliver = Callable[..., None]
Spans = Callable[[], dict[str, ReadableSpan]]
Run = Callable[[Callable[..., object]], None]


@pytest.fixture(scope="module")
def exporter() -> Iterator[InMemorySpanExporter]:
    """Collect the spans of this process while the tests of this module run."""
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    with pytest.MonkeyPatch.context() as patch:
        # The public setter works once per process, and would trace the tests of other files too.
        patch.setattr(trace, "_TRACER_PROVIDER", provider)
        # The product's tracer would stay with the first provider that it ever met.
        patch.setattr("config.tracing._tracer", provider.get_tracer("firstseen"))
        yield kept
    provider.shutdown()


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Spans:
    """Return a function that returns the finished spans by name, the latest of each."""
    exporter.clear()
    return lambda: {span.name: span for span in exporter.get_finished_spans()}


@pytest.fixture
def store(databases: Databases) -> Iterator[Store]:
    """Open the ledger of an empty SQLite database."""
    opened = Store(driver_url(databases.migrated("sqlite")))
    yield opened
    opened.close()


@pytest.fixture
def deliver(store: Store, serve: Serve) -> Deliver:
    """Return a function that delivers a Stripe event to web on this ledger."""
    url = store.url.render_as_string(hide_password=False)
    client = serve(url, SOURCES, STRIPE_WEBHOOK_SECRET=STRIPE_SECRET).test_client()

    def post(event_id: str, **headers: str) -> None:
        body, signed = stripe_delivery(stripe_event(event_id, email="jane@example.com"))
        assert (
            client.post("/webhooks/stripe?who=jane", data=body, headers=signed | headers).status_code == 200
        )

    return post


@pytest.fixture
def run(store: Store, tmp_path: Path, listener: Listener) -> Iterator[Run]:
    """Return a function that runs the due event with a handler, which may call `shop`."""
    (tmp_path / "apis.toml").write_text(APIS.format(url=listener.url))
    apis = load_apis(tmp_path / "apis.toml", load_dialects(), {"SHOP_KEY": "k" * 20})
    transports = {name: HttpTransport.for_api(api) for name, api in apis.items()}
    context = CallContext(
        store, apis, transports, (b"x" * 32,), LEASE, timedelta(minutes=10), timedelta(days=3), LEASE
    )
    limits = Limits(LEASE, timedelta(minutes=10), timedelta(0), 1)

    def go(handler: Callable[..., object]) -> None:
        registry = Registry([Handler("stripe", "*", handler)])
        policy = AttemptPolicy(15, timedelta(seconds=1))
        runner = Runner(store, lambda held: attempt(held, registry, policy, partial(Calls, context)), limits)
        assert runner.run_next()

    yield go
    for transport in transports.values():
        transport.close()


def call_twice(_event: object, calls: Calls) -> None:
    """Make a GET and a POST."""
    calls.shop.get("/people/jane")
    calls.shop.post("/letters/jane", json={"name": "Jane"})


def ids(span: ReadableSpan) -> tuple[str, str]:
    """Return trace id and span id as W3C Trace Context writes them."""
    found = span.get_span_context()
    assert found
    return f"{found.trace_id:032x}", f"{found.span_id:016x}"


def test_one_trace_from_delivery_to_calls(
    deliver: Deliver, run: Run, spans: Spans, listener: Listener
) -> None:
    """The attempt is a child of the delivery, each call one of the attempt, and APIs get a traceparent."""
    deliver("evt_1")
    run(call_twice)
    finished = spans()
    delivery, ran, read, sent = (
        finished[name] for name in ("POST /webhooks/<source>", "attempt", "GET shop", "POST shop")
    )
    assert len({ids(span)[0] for span in (delivery, ran, read, sent)}) == 1
    assert delivery.parent is None
    assert [f"{span.parent.span_id:016x}" for span in (ran, read, sent)] == [
        ids(delivery)[1],
        ids(ran)[1],
        ids(ran)[1],
    ]
    assert [heard.headers["traceparent"][:-3] for heard in listener.heard] == [
        f"00-{'-'.join(ids(span))}" for span in (read, sent)
    ]
    assert (ran.attributes["firstseen.outcome"], sent.attributes["firstseen.outcome"]) == (
        "finish",
        "succeeded",
    )
    assert delivery.attributes["firstseen.event"] == ran.attributes["firstseen.event"]


def test_a_retry_has_a_trace_of_its_own_and_links(
    deliver: Deliver, run: Run, spans: Spans, store: Store
) -> None:
    """A later attempt starts a new trace that links to the delivery."""

    def later(_event: object, _calls: Calls) -> None:
        raise Retry(after=0)

    deliver("evt_1")
    run(later)
    delivery = spans()["POST /webhooks/<source>"]
    store.shift += timedelta(hours=5)
    run(call_twice)
    second = spans()["attempt"]
    assert second.parent is None
    assert ids(second)[0] != ids(delivery)[0]
    assert [f"{link.context.span_id:016x}" for link in second.links] == [ids(delivery)[1]]
    assert second.attributes["firstseen.attempt"] == 2
    assert ids(spans()["POST shop"])[0] == ids(second)[0]


@pytest.mark.parametrize(("given", "linked"), [(STRANGER, 1), ("00-zz-zz-01", 0), ("jane", 0)])
def test_a_sender_is_linked_and_never_joined(deliver: Deliver, spans: Spans, given: str, linked: int) -> None:
    """A sender's traceparent becomes a link, and never the parent."""
    deliver("evt_1", traceparent=given)
    delivery = spans()["POST /webhooks/<source>"]
    assert delivery.parent is None
    assert ids(delivery)[0] != "a" * 32
    assert len(delivery.links) == linked


@pytest.mark.usefixtures("exporter")
def test_the_request_is_the_same_with_and_without_a_trace(deliver: Deliver, run: Run, store: Store) -> None:
    """The traceparent is neither stored nor fingerprinted, so a resend is the same request."""
    ledger = Ledger(store.url.render_as_string(hide_password=False))
    deliver("evt_1")
    run(call_twice)
    (call,) = ledger.rows("SELECT headers FROM call")
    assert "traceparent" not in call["headers"].lower()


@pytest.mark.usefixtures("exporter")
def test_a_handlers_own_trace_stands(deliver: Deliver, run: Run, listener: Listener) -> None:
    """A traceparent that the handler sets is sent unchanged."""
    deliver("evt_1")
    run(lambda _event, calls: calls.shop.post("/x", json={}, headers={"Traceparent": STRANGER}))
    (heard,) = listener.heard
    assert [value for name, value in heard.headers.items() if name.lower() == "traceparent"] == [STRANGER]


def test_spans_hold_no_data(deliver: Deliver, run: Run, exporter: InMemorySpanExporter) -> None:
    """Spans have no payload, address or error text; a failed span has the error's type."""
    exporter.clear()

    def die(_event: object, calls: Calls) -> None:
        calls.shop.get("/people/jane", params={"who": "jane"})
        raise Dead("no such customer: jane")

    deliver("evt_1")
    run(die)
    finished = " ".join(span.to_json() for span in exporter.get_finished_spans())
    assert "jane" not in finished.lower()
    assert "give up" in finished


def test_nothing_is_recorded_without_an_endpoint(tmp_path: Path) -> None:
    """Without an endpoint the SDK is not imported, and no trace is made."""
    code = """
import sys
from opentelemetry.trace import SpanKind
from config.tracing import current_traceparent, describe, flush, set_up_traces, span
import receiver.app, worker.consumer
set_up_traces("x")
with span("attempt", SpanKind.CONSUMER, parent="00-" + "a" * 32 + "-" + "b" * 16 + "-01") as opened:
    describe(opened, event="x")
    assert current_traceparent() is None
flush(1)
assert not [name for name in sys.modules if name.startswith("opentelemetry.sdk")]
"""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    for name in ENDPOINTS:
        environment.pop(name, None)
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    assert ended.returncode == 0, ended.stderr.decode()


def test_spans_go_where_the_standard_variable_says(tmp_path: Path, listener: Listener) -> None:
    """Spans are exported to OTEL_EXPORTER_OTLP_ENDPOINT, at the latest by `flush`."""
    code = """
from opentelemetry.trace import SpanKind
from config.tracing import flush, set_up_traces, span
set_up_traces("firstseen-test")
with span("attempt", SpanKind.CONSUMER):
    pass
flush(10)
"""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OTEL_EXPORTER_OTLP_ENDPOINT": listener.url}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    heard = listener.heard[0]
    assert heard.path == "/v1/traces"
    assert b"firstseen-test" in heard.body
