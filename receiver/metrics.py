"""`/metrics` for Prometheus: what the ledger counted, in every process, and what this server measured.

`Instruments` measures one web process, `LedgerCollector` reads the ledger at a scrape, `metrics_views` serves
both.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from flask import Blueprint, Response, request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from config.credentials import ApiKey, bearer_token, find_api_key
from receiver.ledger.counters import CounterKind
from receiver.ledger.errors import LedgerError
from receiver.ledger.reports import LedgerFigures, figures
from receiver.ledger.store import Store
from receiver.problems import Problem

# The variable in which prometheus_client looks, once, when it is imported. `receiver.__main__` sets it.
FOLDER = "PROMETHEUS_MULTIPROC_DIR"

# Seconds that figures are cached. Shorter than any sensible scrape interval: of several processes, one
# must not answer with older totals than another did before.
CACHE_SECONDS = 5.0

# Seconds: a good answer takes a few milliseconds, and the ledger is given up after five seconds.
ANSWER_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

# Events of one delivery: most providers send one, a few send batches of up to a thousand.
BATCH_BUCKETS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000)

# Name, help and labels. The last labels of a total are taken: a sweep has one.
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

GAUGES: Final[dict[str, tuple[str, Callable[[LedgerFigures], float]]]] = {
    "firstseen_oldest_unfinished_seconds": (
        "Age of the oldest event that is not finished.",
        lambda known: known.oldest_unfinished,
    ),
    "firstseen_due_events": ("Events that a worker could run now.", lambda known: known.due),
    "firstseen_longest_due_seconds": (
        "How long the first of them has been due.",
        lambda known: known.longest_due,
    ),
    "firstseen_workers": ("Workers that swept in the last minute.", lambda known: known.workers),
}


class Instruments:
    """The measures of one web process; the ledger counts the rest."""

    def __init__(self) -> None:
        self.own = CollectorRegistry()
        self._answers: dict[tuple[str, int], Histogram] = {}
        self.answers = Histogram(
            "firstseen_answer_seconds",
            "Time from a request's arrival to its answer.",
            ["route", "status"],
            buckets=ANSWER_BUCKETS,
            registry=self.own,
        )
        self.batches = Histogram(
            "firstseen_record_batch_events",
            "Events that one delivery recorded in one transaction.",
            buckets=BATCH_BUCKETS,
            registry=self.own,
        )
        self.nudges = Counter(
            "firstseen_nudges", "Wake-ups that the broker took, or not.", ["result"], registry=self.own
        )

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count one answer and its time."""
        # prometheus_client looks labels up under a lock and by text, which costs more than the observation.
        found = self._answers.get((route, status))
        if found is None:
            found = self._answers[route, status] = self.answers.labels(route, str(status))
        found.observe(seconds)

    def nudged(self, result: str, count: int) -> None:
        """Count nudges that the broker took, or that failed."""
        self.nudges.labels(result).inc(count)

    def registry(self) -> CollectorRegistry:
        """Return a registry to read, of all processes of this server where they share a folder."""
        if not os.environ.get(FOLDER):
            return self.own
        together = CollectorRegistry()
        MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return together


class LedgerCollector(Collector):
    """Reads the ledger at a scrape, at most once in a few seconds; reports if the ledger does not answer."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._kept: tuple[float, LedgerFigures] | None = None

    def describe(self) -> list[Metric]:
        """Name nothing beforehand: registering must not read the ledger."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield everything that the ledger knows."""
        name, text = "firstseen_ledger_up", "Whether the ledger answered."
        try:
            # Under the lock: of scrapes that meet, one reads and the others share its figures.
            with self._lock:
                if self._kept is None or time.monotonic() - self._kept[0] > CACHE_SECONDS:
                    self._kept = time.monotonic(), figures(self._store)
                known = self._kept[1]
        except LedgerError:
            yield GaugeMetricFamily(name, text, value=0)
            return
        yield GaugeMetricFamily(name, text, value=1)
        for kind, (name, text, labels) in TOTALS.items():
            totals = CounterMetricFamily(name, text, labels=labels)
            for total in known.totals:
                if total.kind == kind:
                    totals.add_metric([total.name, total.what][-len(labels) :], total.count)
            yield totals
        states = GaugeMetricFamily(
            "firstseen_events", "Events that are not done or ignored, by state.", labels=("source", "state")
        )
        for source, counts in known.states.items():
            for state, count in counts.items():
                states.add_metric([source, state], count)
        yield states
        parked = GaugeMetricFamily("firstseen_parked_calls", "Calls that need a person.", labels=("api",))
        for api, count in known.parked_calls.items():
            parked.add_metric([api], count)
        yield parked
        for name, (text, read) in GAUGES.items():
            yield GaugeMetricFamily(name, text, value=read(known))


def metrics_views(store: Store, token: str, instruments: Instruments) -> Blueprint:
    """Return the route, which asks for the token; without one it answers that metrics are off."""
    views = Blueprint("metrics", __name__)
    ledger = CollectorRegistry()
    ledger.register(LedgerCollector(store))
    # One key of its own, so that the token is compared as the API's keys are: in constant time.
    keys = (ApiKey("metrics", token, read_only=True),)

    @views.get("/metrics")
    def metrics() -> Response:
        if not token:
            raise Problem(404, "metrics-off", "Metrics are off: set FIRSTSEEN_METRICS_TOKEN to turn them on.")
        if not find_api_key(keys, bearer_token(request.headers.get("Authorization", ""))):
            raise Problem(
                401,
                "metrics-token",
                "Send the token: Authorization: Bearer <FIRSTSEEN_METRICS_TOKEN>.",
                {"WWW-Authenticate": 'Bearer realm="firstseen-metrics"'},
            )
        text = generate_latest(instruments.registry()) + generate_latest(ledger)
        return Response(text, content_type=CONTENT_TYPE_LATEST)

    return views
