"""Workers are killed, frozen and stopped: their events run elsewhere, and attempts are counted right."""

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
"""Seconds from SIGTERM to SIGKILL on Heroku."""
GRACE = 20
"""Seconds that a stopping worker gives its handlers; a worker without any running ends sooner."""


class Stop(NamedTuple):
    """A worker that was told to stop during a long handler, and the time that it took to end."""

    deployment: Deployment
    ended: Future[float]


@pytest.fixture(scope="module", autouse=True)
def stops(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Stop]]:
    """Stop two workers in a 60 s handler, by SIGTERM and by Ctrl-C; it takes 20 s, while other tests run."""
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
    """Stop a worker, twice; return how many seconds it took to exit 0."""
    begun = time.monotonic()
    stop(worker)
    wait_until(lambda: "Stopping" in worker.logs(), worker.logs)
    worker.terminate()
    assert worker.wait_exit(60) == 0
    return time.monotonic() - begun


def wait_started(deployment: Deployment, event_id: str, times: int = 1) -> None:
    """Wait until so many runs of this event have begun."""
    wait_until(
        lambda: deployment.handlers.started(event_id) >= times,
        lambda: f"run {times} of {event_id} to begin:\n{deployment.logs('worker')[-3000:]}",
    )


def wait_ready(worker: Process) -> None:
    """Wait until this worker takes messages."""
    wait_until(lambda: "ready." in worker.logs(), lambda: f"a worker to be ready:\n{worker.logs()}")


def test_a_killed_worker_is_taken_over(deployment: Deployment) -> None:
    """After kill -9 during a handler, another worker runs the event once the lease has expired."""
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
    # The ledger's times are compared: a busy machine may start a handler well after its claim.
    claimed = [moment(attempt["started_at"]) for attempt in ledger.attempts("evt_1")]
    assert claimed[1] - claimed[0] >= timedelta(seconds=LEASE), "the lease was waited out"
    assert ledger.outcomes("evt_1") == ["expire", "finish"]
    event = ledger.event("evt_1")
    assert (event["attempts"], event["crashes"]) == (2, 1), "a crash counts as an attempt"
    assert deployment.handlers.overlaps() == set()


def moment(value: object) -> datetime:
    """Parse a time that a plain SELECT returned: SQLite returns text."""
    return value if isinstance(value, datetime) else datetime.fromisoformat(str(value))


def freeze_between_writes(process: Process, ledger: Ledger) -> None:
    """Freeze a process while it holds no lock: on SQLite it would block every other process."""
    while True:
        process.freeze()
        try:
            ledger.change("DELETE FROM event WHERE 1 = 0")
        except OperationalError:
            process.thaw()
        else:
            return


def test_a_frozen_worker_settles_nothing(deployment: Deployment) -> None:
    """A worker thawed after its lease finds its event taken over, and changes nothing."""
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
    """The lease of a handler that runs longer than it is renewed: no other worker runs the event."""
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
    """A hanging handler's lease is not renewed after max_runtime, so another run may begin."""
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
    """At SIGTERM running handlers finish, no other event begins, and the worker exits soon."""
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
    """An idle worker exits 0 at SIGTERM and Ctrl-C without waiting for its grace, and without a traceback."""
    (worker,) = postgres_deployment.start_worker()
    wait_ready(worker)
    assert callable(stop)
    stop(worker)
    assert worker.wait_exit(GRACE) == 0
    assert "Traceback" not in worker.logs()


def test_a_frozen_broker_holds_no_stopping_worker(postgres_deployment: Deployment, valkey: Valkey) -> None:
    """A worker whose broker is frozen, before or after it started, exits 0 at SIGTERM."""
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
    """A worker that gets SIGTERM at any moment of its start ends soon, with exit 0 or by the signal."""
    moments = [0.0, 0.4, 0.8, 1.2, 1.6]
    workers = postgres_deployment.start_worker(len(moments))
    begun = time.monotonic()
    for moment, worker in zip(moments, workers, strict=True):
        time.sleep(
            max(0.0, begun + moment - time.monotonic())
        )  # SIGTERM must come at these moments of the start
        worker.terminate()
    codes = {worker.wait_exit(GRACE) for worker in workers}
    assert codes <= {0, -signal.SIGTERM}


def test_a_stopping_worker_gives_its_attempts_back(stops: list[Stop]) -> None:
    """During a 60 s handler SIGTERM and Ctrl-C end in exit 0 within 30 s, and the attempt is not counted."""
    for deployment, ended in stops:
        assert ended.result() < EXIT_WITHIN
        ledger = Ledger(deployment.database_url)
        event = ledger.event("evt_long")
        assert (event["state"], event["attempts"], event["crashes"]) == ("waiting", 0, 0)
        assert ledger.outcomes("evt_long") == ["release"]
