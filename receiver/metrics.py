"""`/metrics` for Prometheus: what the ledger counted, in every process, and what this server measured.

`Instruments` measures one web process, `LedgerCollector` reads the ledger at a scrape, `metrics_views` serves
both.
"""

import functools
import json
import logging
import os
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from flask import Blueprint, Response, request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from config.credentials import ApiKey, bearer_token, find_api_key
from receiver.ledger.counters import CounterKind
from receiver.ledger.errors import LedgerError
from receiver.ledger.reports import LedgerFigures, figures
from receiver.ledger.store import Store
from receiver.ledger.text import random_hex
from receiver.problems import Problem

log = logging.getLogger(__name__)

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


class Instruments(Collector):
    """The measures of one web process, at the cost of an addition each; the ledger counts the rest.

    Processes of one server share a folder, into which each writes its measures a few times a second: any of
    them reports those of all. The measures of a process that ended stay, so totals never go down.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._file = Path(folder) / f"{os.getpid()}-{random_hex()}.json" if folder else None
        # The last number of each histogram is the sum, those before it belong to the buckets and to +Inf.
        self._answers: dict[tuple[str, int], list[float]] = {}
        self._batches = [0.0] * (len(BATCH_BUCKETS) + 2)
        self._nudges: dict[str, int] = {}
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._changed = self._told = False

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count one answer and its time."""
        with self._lock:
            counts = self._answers.get((route, status))
            if counts is None:
                counts = self._answers[route, status] = [0.0] * (len(ANSWER_BUCKETS) + 2)
            counts[bisect_left(ANSWER_BUCKETS, seconds)] += 1
            counts[-1] += seconds
            self._changed = True

    def recorded(self, events: int) -> None:
        """Count the events of one delivery."""
        with self._lock:
            self._batches[bisect_left(BATCH_BUCKETS, events)] += 1
            self._batches[-1] += events
            self._changed = True

    def nudged(self, result: str, count: int) -> None:
        """Count nudges that the broker took, or that failed."""
        with self._lock:
            self._nudges[result] = self._nudges.get(result, 0) + count
            self._changed = True

    def flush(self) -> None:
        """Write this process's measures into the folder, if they changed."""
        # One thread at a time, as the event loop and a scrape would write into one file.
        with self._writing:
            with self._lock:
                if self._file is None or not self._changed:
                    return
                self._changed, mine = False, json.dumps(self._measures())
            try:
                fresh = self._file.with_suffix(".new")
                fresh.write_text(mine)
                fresh.replace(self._file)
                self._told = False
            except OSError as error:
                self._changed = True
                if not self._told:
                    log.warning("The folder of the measures takes none: %s", type(error).__name__)
                self._told = True

    def describe(self) -> list[Metric]:
        """Name nothing beforehand: a registry would collect to find out."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the measures of all processes of this server."""
        self.flush()
        if self._file is None:
            with self._lock:
                found = [self._measures()]
        else:
            found = [json.loads(path.read_text()) for path in self._file.parent.glob("*.json")]
        answers: dict[tuple[str, int], list[float]] = {}
        nudges: Counter[str] = Counter()
        for measures in found:
            nudges.update(measures["nudges"])
            for route, status, counts in measures["answers"]:
                answers[route, status] = _added(answers.get((route, status)), counts)
        text = "Time from a request's arrival to its answer."
        histogram = HistogramMetricFamily("firstseen_answer_seconds", text, labels=("route", "status"))
        for (route, status), counts in answers.items():
            buckets, total = _buckets(ANSWER_BUCKETS, counts)
            histogram.add_metric((route, str(status)), buckets, total)
        yield histogram
        batches = functools.reduce(_added, (measures["batches"] for measures in found), None)
        buckets, total = _buckets(BATCH_BUCKETS, batches or self._batches)
        text = "Events that one delivery recorded in one transaction."
        yield HistogramMetricFamily("firstseen_record_batch_events", text, buckets, total)
        text = "Wake-ups that the broker took, or not."
        wakes = CounterMetricFamily("firstseen_nudges", text, labels=("result",))
        for result, count in nudges.items():
            wakes.add_metric((result,), count)
        yield wakes

    def _measures(self) -> dict[str, Any]:
        answers = [[route, status, counts] for (route, status), counts in self._answers.items()]
        return {"answers": answers, "batches": self._batches, "nudges": self._nudges}


def _added(first: Sequence[float] | None, second: Sequence[float]) -> list[float]:
    return list(second) if first is None else [a + b for a, b in zip(first, second, strict=True)]


def _buckets(bounds: Sequence[float], counts: Sequence[float]) -> tuple[list[tuple[str, float]], float]:
    """Return a histogram's buckets, each with all that are below its bound, and its sum."""
    names = [*(str(float(bound)) for bound in bounds), "+Inf"]
    return list(zip(names, accumulate(counts[:-1]), strict=True)), counts[-1]


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
    registry = CollectorRegistry()
    registry.register(instruments)
    registry.register(LedgerCollector(store))
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
        return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)

    return views
