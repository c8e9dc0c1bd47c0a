"""Workers are killed, frozen and told to stop: what they held goes on elsewhere, counted as it should be."""

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import NamedTuple

import pytest
from sqlalchemy.exc import OperationalError

from tests.conftest import ON_POSTGRES, ON_SQLITE
from tests.services.databases import Databases
from tests.services.deployment import Deployment
from tests.services.ledger import Ledger
from tests.services.processes import Process
from tests.services.valkey import Valkey
from tests.services.waiting import wait_until

LEASE = 2.0
QUICK = {"FIRSTSEEN_LEASE": f"{LEASE}s", "FIRSTSEEN_SWEEP": "300ms"}
EXIT_WITHIN = 30
"""Seconds from SIGTERM to the end: Heroku kills then."""
GRACE = 20
"""Seconds that a stopping worker gives its handlers: one with nothing to wait for ends before."""


class Stop(NamedTuple):
    """A worker that was told to stop in the middle of a long handler, and is watched from then on."""

    deployment: Deployment
    ended: Future[float]


@pytest.fixture(scope="module", autouse=True)
def stops(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Stop]]:
    """Stop two workers in a 60 s handler, by SIGTERM and Ctrl-C, while other tests run: it takes 20 s."""
    folder = tmp_path_factory.mktemp("stops")
    kinds = {"sqlite": Process.terminate, "postgres": Process.interrupt}
    with ThreadPoolExecutor(len(kinds)) as pool, ExitStack() as cleanup:
        valkey = Valkey()
        cleanup.callback(valkey.stop)
        valkey.start()
        made = []
        for number, (kind, stop) in enumerate(kinds.items()):
            broker = f"redis://127.0.0.1:{valkey.port}/{number}"
            deployment = Deployment(folder / kind, databases.migrated(kind), broker)
            cleanup.callback(deployment.stop)
            deployment.start().deliver("evt_long", sleep=60).raise_for_status()
            wait_started(deployment, "evt_long")
            made.append(Stop(deployment, pool.submit(stop_and_watch, deployment.workers[0], stop)))
        yield made


def stop_and_watch(worker: Process, stop: Callable[[Process], None]) -> float:
    """Stop a worker, twice; return after how many seconds it ended, in order."""
    begun = time.monotonic()
    stop(worker)
    wait_until(lambda: "Stopping" in worker.logs(), worker.logs)
    worker.terminate()
    assert worker.wait_exit(60) == 0
    return time.monotonic() - begun


def wait_started(deployment: Deployment, event_id: str, times: int = 1) -> None:
    """Wait until so many runs of this event began."""
    wait_until(
        lambda: deployment.handlers.started(event_id) >= times,
        lambda: f"run {times} of {event_id} to begin:\n{deployment.logs('worker')[-3000:]}",
    )


def wait_ready(worker: Process) -> None:
    """Wait until this worker takes messages."""
    wait_until(lambda: "ready." in worker.logs(), lambda: f"a worker to be ready:\n{worker.logs()}")


def test_a_killed_worker_is_taken_over(deployment: Deployment) -> None:
    """After a kill -9 in the middle of a handler, another worker runs the event once the lease is over."""
    deployment.env |= QUICK
    deployment.start()
    deployment.deliver("evt_1", hold=True).raise_for_status()
    wait_started(deployment, "evt_1")
    deployment.forget(deployment.workers[0])
    deployment.start_worker()
    wait_started(deployment, "evt_1", 2)
    deployment.handlers.release()
    deployment.wait_handled(["evt_1"])
    ledger = Ledger(deployment.database_url)
    wait_until(lambda: ledger.state("evt_1") == "done", "the event to be done")
    # By the ledger's clock: a busy machine may start a handler well after its claim.
    claimed = [moment(attempt["started_at"]) for attempt in ledger.attempts("evt_1")]
    assert claimed[1] - claimed[0] >= timedelta(seconds=LEASE), "the lease was waited out"
    assert ledger.outcomes("evt_1") == ["expire", "finish"]
    event = ledger.event("evt_1")
    assert (event["attempts"], event["crashes"]) == (2, 1), "a crash counts as an attempt"
    assert deployment.handlers.overlaps() == set()


def moment(value: object) -> datetime:
    """Return a time that a plain SELECT found; SQLite's are texts."""
    return value if isinstance(value, datetime) else datetime.fromisoformat(str(value))


def freeze_between_writes(process: Process, ledger: Ledger) -> None:
    """Freeze a process that holds no lock: on SQLite, one that stops in its transaction stops everybody."""
    while True:
        process.freeze()
        try:
            ledger.change("DELETE FROM event WHERE 1 = 0")
        except OperationalError:
            process.thaw()
        else:
            return


def test_a_frozen_worker_settles_nothing(deployment: Deployment) -> None:
    """A worker that wakes up after its lease finds its event taken over, and changes nothing."""
    deployment.env |= QUICK
    deployment.start()
    (frozen,) = deployment.workers
    deployment.deliver("evt_1", hold=True).raise_for_status()
    wait_started(deployment, "evt_1")
    ledger = Ledger(deployment.database_url)
    freeze_between_writes(frozen, ledger)
    deployment.start_worker()
    wait_started(deployment, "evt_1", 2)
    deployment.handlers.release()
    wait_until(lambda: ledger.state("evt_1") == "done", "the second worker to finish")
    before = ledger.event("evt_1"), ledger.attempts("evt_1")
    frozen.thaw()
    wait_until(lambda: "taken over" in frozen.logs(), frozen.logs)
    wait_until(lambda: len(deployment.handlers.lines()) == 2, "the first run to end")
    assert (ledger.event("evt_1"), ledger.attempts("evt_1")) == before
    assert ledger.outcomes("evt_1") == ["expire", "finish"]
    assert frozen.running, "it goes on working"


@ON_SQLITE
def test_a_long_handler_keeps_its_lease(deployment: Deployment) -> None:
    """A handler that runs for longer than a lease is not run by anybody else: the lease is renewed."""
    deployment.env |= QUICK
    deployment.start(worker=2)
    deployment.deliver("evt_1", sleep=LEASE * 1.6).raise_for_status()
    deployment.wait_handled(["evt_1"])
    ledger = Ledger(deployment.database_url)
    wait_until(lambda: ledger.state("evt_1") == "done", "the event to be done")
    assert ledger.outcomes("evt_1") == ["finish"]
    assert deployment.handlers.lines() == ["evt_1"]


@ON_POSTGRES
def test_a_handler_past_max_runtime_loses_its_claim(deployment: Deployment) -> None:
    """A handler that hangs is not renewed for ever: after max_runtime and a lease another run may begin."""
    deployment.env |= QUICK | {"FIRSTSEEN_MAX_RUNTIME": "1s"}
    deployment.start()
    deployment.deliver("evt_1", hold=True).raise_for_status()
    wait_started(deployment, "evt_1", 2)
    deployment.handlers.release()
    ledger = Ledger(deployment.database_url)
    wait_until(lambda: ledger.state("evt_1") == "done", "the event to be done")
    assert "finish" in ledger.outcomes("evt_1")


@ON_POSTGRES
def test_a_stopping_worker_finishes_what_it_can(deployment: Deployment) -> None:
    """At SIGTERM a handler that is nearly through ends its event, nothing new begins, the exit is quick."""
    deployment.env |= {"WORKER_CONCURRENCY": "2"}
    deployment.start()
    (worker,) = deployment.workers
    running, waiting = ["evt_a", "evt_b"], [f"evt_later_{number}" for number in range(6)]
    deployment.deliver_many(running, hold=True)
    for name in running:
        wait_started(deployment, name)
    deployment.deliver_many(waiting)
    worker.terminate()
    wait_until(lambda: "Stopping" in worker.logs(), worker.logs)
    deployment.handlers.release()
    assert worker.wait_exit(GRACE) == 0
    ledger = Ledger(deployment.database_url)
    assert ledger.states() == {"done": len(running), "received": len(waiting)}
    deployment.start_worker(FIRSTSEEN_SWEEP="300ms")
    deployment.wait_handled(waiting)
    assert sorted(deployment.handlers.lines()) == sorted(running + waiting)


@pytest.mark.parametrize("stop", [Process.terminate, Process.interrupt])
def test_an_idle_worker_stops_at_once(postgres_deployment: Deployment, stop: object) -> None:
    """With nothing to do, SIGTERM and Ctrl-C end a worker before its grace is over, exit 0, no traceback."""
    (worker,) = postgres_deployment.start_worker()
    wait_ready(worker)
    assert callable(stop)
    stop(worker)
    assert worker.wait_exit(GRACE) == 0
    assert "Traceback" not in worker.logs()


def test_a_frozen_broker_holds_no_stopping_worker(postgres_deployment: Deployment, valkey: Valkey) -> None:
    """With its broker frozen, or frozen before it started, a worker still ends at SIGTERM, with exit 0."""
    (connected,) = postgres_deployment.start_worker()
    wait_ready(connected)
    valkey.freeze()
    (connecting,) = postgres_deployment.start_worker()
    wait_until(lambda: len(connecting.family()[0].net_connections()) > 1, "the second one to try the broker")
    for worker in (connected, connecting):
        worker.terminate()
    for worker in (connected, connecting):
        assert worker.wait_exit(EXIT_WITHIN) == 0


def test_a_starting_worker_can_be_stopped(postgres_deployment: Deployment) -> None:
    """Whenever SIGTERM comes while a worker starts, it ends soon: in order, or at once by the signal."""
    moments = [0.0, 0.4, 0.8, 1.2, 1.6]
    workers = postgres_deployment.start_worker(len(moments))
    begun = time.monotonic()
    for moment, worker in zip(moments, workers, strict=True):
        time.sleep(max(0.0, begun + moment - time.monotonic()))  # the moments are the test's subject
        worker.terminate()
    codes = {worker.wait_exit(GRACE) for worker in workers}
    assert codes <= {0, -signal.SIGTERM}


def test_a_stopping_worker_gives_its_attempts_back(stops: list[Stop]) -> None:
    """With a 60 s handler, SIGTERM (twice) and Ctrl-C end in exit 0 within 30 s, the attempt uncounted."""
    for deployment, ended in stops:
        assert ended.result() < EXIT_WITHIN
        ledger = Ledger(deployment.database_url)
        event = ledger.event("evt_long")
        assert (event["state"], event["attempts"], event["crashes"]) == ("waiting", 0, 0)
        assert ledger.outcomes("evt_long") == ["release"]
