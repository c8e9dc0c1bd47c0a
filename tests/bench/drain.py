"""*Drain*: throughput on a backlog, and latency of a single event's handler."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import psutil
from celery import Celery

from receiver.ledger.intake import Delivery, record
from receiver.ledger.store import Store
from tests.bench.accept import new_ids
from tests.bench.contestants import EMPTY, THREADS, deploy, rss
from tests.services.checkout import CHECKOUT
from tests.services.databases import Databases, driver_url
from tests.services.deployment import Deployment
from tests.services.ledger import Ledger
from tests.services.processes import Process, clean_environment
from tests.services.valkey import Valkey
from tests.services.waiting import free_port, wait_until

BATCH = 500
POLL, PATIENCE = 0.5, 900.0
"""Seconds between two polls, which cost processor time too, and until the last one."""

PAUSE = 0.1
"""Seconds between two events of an idle system."""

CALL_TIME = 0.02
"""Seconds that the API takes for one call."""

APIS = """[slow]
base_url = "http://127.0.0.1:{port}"
dialect = "ietf"
auth = {{ type = "bearer", value_env = "SLOW_KEY" }}
max_connections = {threads}
"""


@dataclass(frozen=True)
class Drained:
    """Events per second, and the worker's processor seconds per event.

    `pool` is the rate if its threads only waited for the call.
    """

    name: str
    rate: float
    cpu: float
    pool: float = THREADS / CALL_TIME


def fill(deployment: Deployment, count: int) -> None:
    """Record this many events as web does, without nudging."""
    store = Store(driver_url(deployment.database_url))
    ids = new_ids(count)
    for start in range(0, count, BATCH):
        batch = [
            Delivery("stripe", event_id, "invoice.paid", b"{}", content_type="application/json")
            for event_id in ids[start : start + BATCH]
        ]
        record(store, batch)
    store.close()


def drain_firstseen(folder: Path, databases: Databases, broker: Valkey, count: int, code: str) -> Drained:
    """Let one worker drain a backlog of recorded events."""
    with slow_api() as port:
        (folder / "apis.toml").write_text(APIS.format(port=port, threads=THREADS))
        env = {"FIRSTSEEN_APIS": str(folder / "apis.toml"), "SLOW_KEY": "bench"}
        name = "empty handler" if code == EMPTY else "one 20 ms call"
        deployment = deploy(folder / name.replace(" ", "-"), databases, broker, "postgres", code, **env)
        try:
            fill(deployment, count)
            ledger = Ledger(deployment.database_url)
            begun = time.monotonic()
            worker = deployment.start_worker()[0]
            poll_until(lambda: ledger.states()["done"] > 0)
            begun, already, used = time.monotonic(), ledger.states()["done"], cpu_of(worker)
            poll_until(lambda: ledger.states()["done"] >= count)
            took, drained = time.monotonic() - begun, count - already
            return Drained(name, drained / took, (cpu_of(worker) - used) / drained)
        finally:
            deployment.stop()


def drain_celery(folder: Path, broker: Valkey, count: int) -> Drained:
    """Let a plain Celery worker with the same pool drain a queue of empty tasks."""
    app = Celery("plain", broker=broker.url)
    for number in range(count):
        app.send_task("plain.nothing", (f"evt_{number}",), ignore_result=True)
    with plain_worker(folder, broker) as process:
        poll_until(lambda: broker.queue_length("celery") < count)
        begun, already, used = time.monotonic(), count - broker.queue_length("celery"), cpu_of(process)
        poll_until(lambda: broker.queue_length("celery") == 0)
        took, drained = time.monotonic() - begun, count - already
        return Drained("plain Celery tasks", drained / took, (cpu_of(process) - used) / drained)


@contextmanager
def plain_worker(folder: Path, broker: Valkey) -> Iterator[Process]:
    """Run a plain Celery worker with Firstseen's pool."""
    settings = {"BENCH_BROKER": broker.url, "BENCH_TIMES": str(folder / "times.txt")}
    env = clean_environment(PYTHONPATH=str(CHECKOUT), **settings)
    argv = ["-m", "celery", "-A", "tests.bench.apps.plain", "worker", "--pool", "threads"]
    command = [sys.executable, *argv, "--concurrency", str(THREADS), "--loglevel", "ERROR"]
    process = Process("celery", command, log=folder / "celery.log", env=env, cwd=folder)
    try:
        yield process
    finally:
        process.kill()


def celery_latencies(folder: Path, broker: Valkey, count: int) -> list[float]:
    """Return milliseconds from the sending of a plain task to its start, one task at a time."""
    times, app = folder / "times.txt", Celery("plain", broker=broker.url)
    times.touch()
    with plain_worker(folder, broker):
        # The first task waits for the worker to start, and is not counted.
        for number in range(count + 1):
            app.send_task("plain.timed", (time.time(),), ignore_result=True)
            if number == 0:
                poll_until(lambda: _lines(times))
            time.sleep(PAUSE)
        poll_until(lambda: len(_lines(times)) > count)
        return [float(line) for line in _lines(times)[1:]]


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines()


def latencies(
    folder: Path, databases: Databases, broker: Valkey, count: int
) -> tuple[list[float], float, float]:
    """Return milliseconds from commit to handler start, one event at a time, and both sides' memory."""
    deployment = deploy(folder / "idle", databases, broker, "postgres")
    try:
        deployment.start()
        deployment.deliver("evt_warm_up")
        ledger = Ledger(deployment.database_url)
        wait_until(lambda: ledger.states()["done"] == 1, "the first event to be done")
        web, worker = rss(deployment.webs[0]), rss(deployment.workers[0])
        for number in range(count):
            deployment.deliver(f"evt_idle_{number}")
            time.sleep(PAUSE)
        poll_until(lambda: ledger.states()["done"] > count)
        query = """SELECT extract(epoch FROM a.started_at - e.received_at) * 1000 AS ms
            FROM attempt a JOIN event e ON e.id = a.event WHERE e.event_id LIKE 'evt_idle_%'"""
        return [float(row["ms"]) for row in ledger.rows(query)], web, worker
    finally:
        deployment.stop()


def poll_until(predicate: Callable[[], object]) -> None:
    """Wait until `predicate` is true, with few polls, because each costs processor time."""
    deadline = time.monotonic() + PATIENCE
    while not predicate():
        if time.monotonic() > deadline:
            raise TimeoutError(f"The condition is not true after {PATIENCE:.0f} s.")
        time.sleep(POLL)


def cpu_of(process: Process) -> float:
    """Return the processor seconds that a family of processes has used."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    return sum(member.cpu_times().user + member.cpu_times().system for member in family)


class _Slow(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body leave separately: otherwise the body waits 40 ms for a delayed ACK of the head.
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(CALL_TIME)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def slow_api() -> Iterator[int]:
    """Serve an API whose responses take 20 ms; yield its port."""
    port = free_port()
    server = ThreadingHTTPServer(("127.0.0.1", port), _Slow)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield port
    finally:
        server.shutdown()
