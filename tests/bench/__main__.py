"""`make bench`: measure everything in one run and write docs/PERFORMANCE.md."""

import argparse
import itertools
import os
import platform
import sys
import tempfile
import warnings
from contextlib import ExitStack
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

from config.settings import load_settings
from receiver.ledger.store import Store
from tests.bench import report
from tests.bench.accept import MANY, STORM, measure, measure_commits, measure_paced, new_ids
from tests.bench.burst import burst
from tests.bench.contestants import (
    EMPTY,
    ONE_CALL,
    THREADS,
    Contestant,
    deploy,
    serve_app,
    serve_dbos,
    serve_firstseen,
    serve_naive,
    version_of,
)
from tests.bench.drain import celery_latencies, drain_celery, drain_firstseen, latencies
from tests.bench.growth import grow
from tests.bench.load import MISSING, has_wrk, read_deliveries, write_deliveries
from tests.bench.profile import profile
from tests.bench.targets import rates
from tests.services.databases import Databases, driver_url
from tests.services.deployment import Deployment
from tests.services.ledger import Ledger
from tests.services.postgres import Postgres
from tests.services.valkey import Valkey
from tests.services.waiting import wait_until

PARTS = ("accept", "storm", "drain", "idle", "growth", "burst", "profile")
TWO = {"WEB_CONCURRENCY": "2"}
DBOS_MISSING = "dbos is not installed (the extra `bench`): that contestant is left out."


class Bench:
    """One run: the services that all contestants share, and what was measured."""

    def __init__(self, folder: Path, cleanup: ExitStack, *, quick: bool) -> None:
        self.folder, self.contestants, self.quick = folder, cleanup, quick
        self.postgres = Postgres(fsync=True, synchronous_commit="on")
        cleanup.callback(self.postgres.stop)
        self.postgres.start()
        self.broker = Valkey()
        cleanup.callback(self.broker.stop)
        self.broker.start()
        self.databases = Databases(folder, lambda: self.postgres)
        self.found: dict[str, Any] = {}
        self.numbers = itertools.count()
        self.found |= {"settings": self.settings(), "versions": versions()}

    def settings(self) -> dict[str, str]:
        """Read the settings back from the running services."""
        url = self.databases.fresh("postgres")
        names = ("fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "max_connections")
        found = {f"PostgreSQL {name}": str(Ledger(url).rows(f"SHOW {name}")[0][name]) for name in names}
        lite = Store(driver_url(self.databases.migrated("sqlite")))
        with lite.read() as connection:
            for name in ("journal_mode", "synchronous"):
                found[f"SQLite {name}"] = str(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
        lite.close()
        with patch.dict(os.environ, self.deployed("sqlite").env):
            ours = load_settings()
        found |= {"threads of the others' servers": str(THREADS)}
        found |= {"worker's threads": str(ours.worker_concurrency), "database connections": str(ours.db_pool)}
        return found | {"processes of the server": str(ours.web_concurrency), "cores": str(os.cpu_count())}

    def start(self, contestant: Contestant) -> Contestant:
        """Stop this contestant when its part ends."""
        self.contestants.callback(contestant.stop)
        return contestant

    def deployed(self, kind: str, **env: str) -> Deployment:
        """Deploy Firstseen on one kind of database."""
        place = self.folder / f"{kind}-{next(self.numbers)}"
        return deploy(place, self.databases, self.broker, kind, **env)

    def accept(self) -> None:
        """Compare all contestants on first-seen events and on half duplicates."""
        contestants = [
            self.start(serve_app(self.folder, "bare")),
            self.start(serve_naive(self.folder, self.databases, self.broker)),
            self.start(serve_firstseen(self.deployed("postgres"), "firstseen")),
            self.start(serve_firstseen(self.deployed("sqlite"), "firstseen-sqlite")),
            self.start(serve_firstseen(self.deployed("postgres", **TWO), "firstseen, 2 processes")),
        ]
        if find_spec("dbos"):
            contestants.append(self.start(serve_dbos(self.folder, self.databases)))
        else:
            say(DBOS_MISSING)
        options: dict[str, Any] = {"folder": self.folder, **self.lengths}
        self.found["accept"] = measure(
            contestants, ("all first-seen", "half duplicates"), connections=(16, MANY), **options
        )
        full = rates(self.found["accept"])["firstseen"]
        self.found["accept"] += measure_paced(contestants[2], full, **options)
        self.found["accept"].append(measure_commits(self.databases.fresh("postgres")))
        gunicorn = [self.start(serve_app(self.folder, "bare", "gunicorn"))]
        self.found["gunicorn"] = measure(gunicorn, ("all first-seen",), connections=(MANY,), **options)

    def storm(self) -> None:
        """Compare a storm of duplicates of done events with the bare view."""
        deployment = self.deployed("postgres")
        firstseen = self.start(serve_firstseen(deployment, "firstseen"))
        deployment.start_worker()
        ids = new_ids(STORM)
        for body, headers in read_deliveries(write_deliveries(self.folder / "storm.txt", ids)):
            deployment.post("stripe", body, headers).raise_for_status()
        ledger = Ledger(deployment.database_url)
        wait_until(lambda: ledger.states()["done"] == STORM, "the storm's events to be done")
        contestants = [self.start(serve_app(self.folder, "bare")), firstseen]
        options: dict[str, Any] = {"folder": self.folder, "storm": ids, **self.lengths}
        self.found["storm"] = measure(contestants, ("storm",), connections=(MANY,), **options)

    def drain(self) -> None:
        """Compare empty handlers with plain Celery tasks, then measure handlers with one call."""
        count = 4_000 if self.quick else 20_000
        place = self.folder / "drain"
        place.mkdir()
        self.found["drain"] = [
            drain_celery(place, self.broker, count),
            drain_firstseen(place, self.databases, self.broker, count, EMPTY),
            drain_firstseen(place, self.databases, self.broker, count // 10, ONE_CALL),
        ]

    def idle(self) -> None:
        """Measure latency and memory of an idle system."""
        count, place = 60 if self.quick else 200, self.folder / "plain"
        place.mkdir()
        self.found["idle"] = latencies(self.folder, self.databases, self.broker, count)
        self.found["plain idle"] = celery_latencies(place, self.broker, count)

    def growth(self) -> None:
        """Measure recording at growing numbers of rows."""
        sizes = (1_000, 100_000) if self.quick else (1_000, 100_000, 1_000_000)
        self.found["growth"] = []
        for kind in ("postgres", "sqlite"):
            store = Store(driver_url(self.databases.migrated(kind)))
            self.found["growth"] += grow(store, kind, sizes)
            store.close()

    def profile(self) -> None:
        """Measure the processor time of each stage of one delivery."""
        self.found["profile"] = profile(self.deployed("postgres"), self.folder)

    def burst(self) -> None:
        """Measure 5,000 deliveries at once with a frozen broker."""
        self.found["burst"] = burst(self.folder, self.databases, self.broker)

    @property
    def lengths(self) -> dict[str, Any]:
        """Seconds of each measurement, and its repetitions."""
        return {"rounds": 2, "seconds": 2.0} if self.quick else {"rounds": 3, "seconds": 3.0}


def versions() -> dict[str, str]:
    """Return the versions of Python, the libraries and wrk."""
    names = ("flask", "granian", "gunicorn", "sqlalchemy", "psycopg", "celery", "dbos")
    found = {name: version(name) for name in names if find_spec(name)}
    return found | {"Python": platform.python_version(), "wrk": version_of(["wrk", "-v"])}


def say(line: str) -> None:
    """Print a line at once: a run takes minutes."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    """Run the chosen parts; return 2 if the load generator is missing."""
    parser = argparse.ArgumentParser(prog="make bench", description="Measure Firstseen beside others.")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help=f"default: all of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="short rounds, to see that it works")
    parser.add_argument("--write", action="store_true", help="write docs/PERFORMANCE.md")
    chosen = parser.parse_args()
    if not has_wrk():
        say(MISSING)
        return 2
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="fs-bench-") as folder, ExitStack() as cleanup:
        bench = Bench(Path(folder), cleanup, quick=chosen.quick)
        say(report.settings(bench.found))
        for part in chosen.parts or PARTS:
            say(f"== {part}")
            # Otherwise the workers of one part would receive the nudges of the next.
            with ExitStack() as bench.contestants:
                getattr(bench, part)()
            say(report.part(part, bench.found))
        if chosen.write:
            report.write(bench.found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
