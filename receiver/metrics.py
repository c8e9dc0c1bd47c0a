"""`/metrics` for Prometheus: what the ledger counted, whoever did it, and what this server measured."""

import hmac
import threading
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Final

from flask import Blueprint, Response, request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from receiver.instruments import Instruments
from receiver.ledger.counters import CounterKind
from receiver.ledger.errors import LedgerError
from receiver.ledger.reports import Figures, figures
from receiver.ledger.store import Store
from receiver.problems import Problem

KEPT = 5.0
"""Seconds that figures are shown again. Less than any sensible scrape interval: of several processes, one
must not answer with older totals than another did before."""

TOTALS: Final[dict[CounterKind, tuple[str, str, tuple[str, ...]]]] = {
    CounterKind.DELIVERY: (
        "firstseen_deliveries",
        "Events in verified deliveries; first seen, duplicate or conflict.",
        ("source", "verdict"),
    ),
    CounterKind.ATTEMPT: (
        "firstseen_attempts",
        "Runs of handlers, by how they ended.",
        ("source", "outcome"),
    ),
    CounterKind.CALL: ("firstseen_calls", "Sends of outbound calls, by what came back.", ("api", "outcome")),
    CounterKind.REJECTION: ("firstseen_rejections", "Deliveries that were refused.", ("source", "reason")),
    CounterKind.SWEEP: ("firstseen_sweeps", "What the sweepers of all workers did.", ("what",)),
}
"""Name, help and labels. The last labels of a total are taken: a sweep has one."""

GAUGES: Final[dict[str, tuple[str, Callable[[Figures], float]]]] = {
    "firstseen_oldest_unfinished_seconds": (
        "Age of the oldest event that is not finished.",
        lambda told: told.oldest_unfinished,
    ),
    "firstseen_due_events": ("Events that a worker could run now.", lambda told: told.due),
    "firstseen_longest_due_seconds": (
        "How long the first of them has been due.",
        lambda told: told.longest_due,
    ),
    "firstseen_workers": ("Workers that swept in the last minute.", lambda told: told.workers),
}


class LedgerCollector(Collector):
    """Reads the ledger at a scrape, at most once in a few seconds; without a ledger it says just that."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._told: tuple[float, Figures] | None = None

    def describe(self) -> list[Metric]:
        """Name nothing beforehand: registering must not read the ledger."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield everything that the ledger knows."""
        try:
            told = self._figures()
        except LedgerError:
            yield _up(0)
            return
        yield _up(1)
        yield from _totals(told)
        yield from _standing(told)

    def _figures(self) -> Figures:
        with self._lock:
            if self._told is None or time.monotonic() - self._told[0] > KEPT:
                self._told = time.monotonic(), figures(self._store)
            return self._told[1]


def metrics_views(store: Store, token: str, instruments: Instruments) -> Blueprint:
    """Return the route; without a token it says that metrics are off."""
    views = Blueprint("metrics", __name__)
    ledger = CollectorRegistry()
    ledger.register(LedgerCollector(store))

    @views.get("/metrics")
    def metrics() -> Response:
        _admit(token)
        text = generate_latest(instruments.registry()) + generate_latest(ledger)
        return Response(text, content_type=CONTENT_TYPE_LATEST)

    return views


def _admit(token: str) -> None:
    if not token:
        raise Problem(404, "metrics-off", "Metrics are off: set FIRSTSEEN_METRICS_TOKEN to turn them on.")
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    # Digests of one length, so that the time tells nothing of the token.
    both = (sha256(text.encode("utf-8", "surrogatepass")).digest() for text in (token, given.strip()))
    if scheme.lower() != "bearer" or not hmac.compare_digest(*both):
        raise Problem(
            401,
            "metrics-token",
            "Send the token: Authorization: Bearer <FIRSTSEEN_METRICS_TOKEN>.",
            {"WWW-Authenticate": 'Bearer realm="firstseen-metrics"'},
        )


def _up(value: int) -> Metric:
    return GaugeMetricFamily("firstseen_ledger_up", "Whether the ledger answered.", value=value)


def _totals(told: Figures) -> Iterator[Metric]:
    for kind, (name, text, labels) in TOTALS.items():
        family = CounterMetricFamily(name, text, labels=labels)
        for total in told.totals:
            if total.kind == kind:
                family.add_metric([total.name, total.what][-len(labels) :], total.count)
        yield family


def _standing(told: Figures) -> Iterator[Metric]:
    states = GaugeMetricFamily(
        "firstseen_events", "Events that are not done or ignored, by state.", labels=("source", "state")
    )
    for source, counts in told.states.items():
        for state, count in counts.items():
            states.add_metric([source, state], count)
    yield states
    parked = GaugeMetricFamily("firstseen_parked_calls", "Calls that need a person.", labels=("api",))
    for api, count in told.parked_calls.items():
        parked.add_metric([api], count)
    yield parked
    for name, (text, read) in GAUGES.items():
        yield GaugeMetricFamily(name, text, value=read(told))
