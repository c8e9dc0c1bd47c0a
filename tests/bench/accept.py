"""*Accept*: deliveries answered per second, contestants in turn."""

import statistics
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg

from tests.bench.contestants import Contestant
from tests.bench.load import Result, run_wrk, write_deliveries

RATE_MAX = 12_000
"""Deliveries prepared per second: more than any contestant takes, so that none is sent twice by accident."""

STORM = 20
"""Events of a storm; all of its deliveries are duplicates of these."""


MANY = 64
"""Connections at which contestants are judged."""

LONE_PAUSE = 20.0
"""Milliseconds between lone deliveries."""


@dataclass(frozen=True)
class Figure:
    """The medians of all rounds for one contestant, workload and number of connections."""

    contestant: str
    workload: str
    connections: int
    rate: float
    p50: float
    p99: float
    bad: int


def new_ids(count: int) -> list[str]:
    """Return ids of new events."""
    run = uuid.uuid4().hex[:12]
    return [f"evt_{run}{number:08x}" for number in range(count)]


def all_new(seconds: float) -> list[str]:
    """Return first-seen events only."""
    return new_ids(int(RATE_MAX * seconds))


def half_duplicates(seconds: float) -> list[str]:
    """Return each event twice, the second time 100 deliveries later."""
    ids = new_ids(int(RATE_MAX * seconds / 2))
    lag = 100
    pairs = zip(ids[lag:] + ids[:lag], ids, strict=True)
    return [event_id for pair in pairs for event_id in pair]


def measure(
    contestants: Iterable[Contestant],
    workloads: Sequence[str],
    *,
    folder: Path,
    rounds: int,
    seconds: float,
    connections: Sequence[int],
    storm: Sequence[str] = (),
) -> list[Figure]:
    """Load each contestant in turn in each round, so that a drift of the machine affects all of them."""
    made = {"all first-seen": all_new, "half duplicates": half_duplicates}
    results: dict[tuple[str, str, int], list[Result]] = defaultdict(list)
    contestants = list(contestants)
    for contestant in contestants:
        # Warm up: loading at the first request is not measured.
        warm = list(storm) or new_ids(RATE_MAX)
        run_wrk(contestant.url, write_deliveries(folder / "deliveries.txt", warm), connections=16, seconds=1)
    for _ in range(rounds):
        for workload in workloads:
            for count in connections:
                for contestant in contestants:
                    ids = list(storm) if workload == "storm" else made[workload](seconds)
                    file = write_deliveries(folder / "deliveries.txt", ids)
                    done = run_wrk(contestant.url, file, connections=count, seconds=seconds)
                    results[contestant.name, workload, count].append(done)
    return [_figure(*key, found) for key, found in results.items()]


def measure_paced(one: Contestant, full: float, *, folder: Path, rounds: int, seconds: float) -> list[Figure]:
    """Load a contestant with half of what it takes in full, a second, and with lone deliveries."""
    paces = {"half of that load": (MANY, 2000 * MANY / full), "lone deliveries": (1, LONE_PAUSE)}
    results: dict[tuple[str, str, int], list[Result]] = defaultdict(list)
    for _ in range(rounds):
        for workload, (count, pause) in paces.items():
            file = write_deliveries(folder / "deliveries.txt", all_new(seconds))
            done = run_wrk(one.url, file, connections=count, seconds=seconds, pause=pause)
            results[one.name, workload, count].append(done)
    return [_figure(*key, found) for key, found in results.items()]


def measure_commits(url: str, count: int = 150) -> Figure:
    """Insert one small row at a time with the driver alone: the least that a lone delivery can take."""
    times = []
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE lone (body text)")
        for _ in range(count):
            begun = time.perf_counter()
            connection.execute("INSERT INTO lone VALUES ('x')")
            times.append((time.perf_counter() - begun) * 1000)
            time.sleep(LONE_PAUSE / 1000)
    p50, p99 = statistics.median(times), statistics.quantiles(times, n=100)[98]
    return Figure("the driver, one row", "lone deliveries", 1, count / sum(times) * 1000, p50, p99, 0)


def _figure(contestant: str, workload: str, connections: int, found: Sequence[Result]) -> Figure:
    def median(name: str) -> float:
        return statistics.median(getattr(result, name) for result in found)

    bad = sum(result.refused + result.errors for result in found)
    return Figure(contestant, workload, connections, median("rate"), median("p50"), median("p99"), bad)
