"""The performance targets, and whether a run reached them."""

import statistics
from collections.abc import Iterator, Sequence

from tests.bench.accept import MANY, Figure
from tests.bench.markdown import Found, table

Row = tuple[str, str, str, bool]
"""Name, target, measurement, and whether the target is reached."""


def targets(found: Found) -> str:
    """Return the table of the targets that this run measured."""
    rows = [row for part, judge in _JUDGES.items() if part in found for row in judge(found)]
    cells = [[name, target, measured, "yes" if met else "no"] for name, target, measured, met in rows]
    return table(["what", "target", "measured", "reached"], cells)


def percentiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the median and the 99th percentile."""
    cuts = statistics.quantiles(values, n=100)
    return statistics.median(values), cuts[98]


def _accept(found: Found) -> Iterator[Row]:
    new = rates(found["accept"])
    ours = new["firstseen"]
    for other, least in (("bare", 0.40), ("naive", 8.0), ("durable", 7.0)):
        if other in new:
            ratio = ours / new[other]
            yield f"first-seen, PostgreSQL, beside {other}", f"{least} x", f"{ratio:.2f} x", ratio >= least
    lite = new["firstseen-sqlite"] / new["bare"]
    yield "first-seen, SQLite, beside bare", "0.4 x", f"{lite:.2f} x", lite >= 0.40
    half = rates(found["accept"], "half duplicates")
    ratio = half["firstseen"] / half["bare"]
    yield "half duplicates, beside bare", "0.35 x", f"{ratio:.2f} x", ratio >= 0.35
    for figure in found["accept"]:
        if figure.workload == "half of that load":
            yield "p99 at half of that load", "25 ms", f"{figure.p99:.1f} ms", figure.p99 <= 25
        elif figure.workload == "lone deliveries" and figure.contestant == "firstseen":
            yield "lone delivery, p50", "1.5 ms", f"{figure.p50:.1f} ms", figure.p50 <= 1.5


def _storm(found: Found) -> Iterator[Row]:
    storm = rates(found["storm"], "storm")
    ratio = storm["firstseen"] / storm["bare"]
    yield "storm of done events, beside bare", "0.6 x", f"{ratio:.2f} x", ratio >= 0.60


def _drain(found: Found) -> Iterator[Row]:
    plain, empty, call = found["drain"]
    ratio = empty.rate / plain.rate
    yield "drain, empty handler, beside plain Celery", "4 x", f"{ratio:.2f} x", ratio >= 4
    # Only one thread at a time runs Python, so the processor limits the rate too.
    limit = min(call.pool, 1 / call.cpu)
    share = call.rate / limit
    which = "the pool" if limit == call.pool else "the processor"
    measured = f"{call.rate:.0f}/s of {limit:.0f}/s, which {which} allows"
    yield "drain, one 20 ms call", "0.9 x of the limit", measured, share >= 0.9


def _idle(found: Found) -> Iterator[Row]:
    values, web, worker = found["idle"]
    p50, p99 = percentiles(values)
    yield "accepted to handler start, p50", "8 ms", f"{p50:.1f} ms", p50 <= 8
    yield "accepted to handler start, p99", "40 ms", f"{p99:.1f} ms", p99 <= 40
    yield "memory of web, idle", "130 MB", f"{web:.0f} MB", web <= 130
    yield "memory of a worker, idle", "140 MB", f"{worker:.0f} MB", worker <= 140


def _growth(found: Found) -> Iterator[Row]:
    for kind in ("postgres", "sqlite"):
        mine = [figure for figure in found["growth"] if figure.kind == kind]
        for name in ("new", "duplicate"):
            ratio = getattr(mine[-1], name) / getattr(mine[0], name)
            what = f"{name}, {kind}, {mine[0].rows:,} to {mine[-1].rows:,} rows"
            yield what, "1.15 x slower", f"{ratio:.2f} x", ratio <= 1.15


def _burst(found: Found) -> Iterator[Row]:
    burst = found["burst"]
    yield "burst: errors", "0", str(burst.bad), burst.bad == 0
    yield "burst: slowest answer", "1 s", f"{burst.slowest:.2f} s", burst.slowest < 1
    yield "burst: memory of web", "150 MB", f"{burst.memory:.0f} MB", burst.memory < 150


def rates(figures: Sequence[Figure], workload: str = "all first-seen") -> dict[str, float]:
    """Return the answers a second of each contestant at MANY connections."""
    return {
        figure.contestant: figure.rate
        for figure in figures
        if figure.workload == workload and figure.connections == MANY
    }


def _profile(found: Found) -> Iterator[Row]:
    whole = sum(time for stage, time in found["profile"].items() if stage != "bare")
    yield "processor time of a delivery", "140 us", f"{whole:.0f} us", whole <= 140


_JUDGES = {
    "accept": _accept,
    "storm": _storm,
    "drain": _drain,
    "idle": _idle,
    "growth": _growth,
    "burst": _burst,
    "profile": _profile,
}
