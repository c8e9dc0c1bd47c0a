"""What this process measures of itself; the ledger counts the rest. Several server processes add up."""

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.multiprocess import MultiProcessCollector

from config.shared_metrics import is_shared

ANSWER_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Seconds: a good answer takes a few milliseconds, and the ledger is given up after five seconds."""

BATCH_BUCKETS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000)


class Instruments:
    """The measures of one web process."""

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
        found = self._answers.get((route, status))
        if found is None:
            found = self._answers[route, status] = self.answers.labels(route, str(status))
        found.observe(seconds)

    def nudged(self, result: str, count: int) -> None:
        """Count nudges that the broker took, or that failed."""
        self.nudges.labels(result).inc(count)

    def registry(self) -> CollectorRegistry:
        """Return a registry to read, of all processes of this server where they share a folder."""
        if not is_shared():
            return self.own
        together = CollectorRegistry()
        MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return together
