"""Recording from 32 threads in 4 processes: one first-seen delivery per event, and no deadlock."""

import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

import pytest
from sqlalchemy import text

from receiver.ledger.errors import LedgerUnavailable
from receiver.ledger.intake import Verdict, record
from receiver.ledger.store import Store
from receiver.ledger.tables import EVENT
from tests.integration.steps import count, delivery
from tests.services.checkout import CHECKOUT

EVENTS = 120
THREADS, PROCESSES = 32, 4
EACH = THREADS // PROCESSES
BATCH, ROUNDS = 8, 2
TRIES = 50
"""SQLite has one writer at a time, so on a busy disk some of 32 wait longer than the timeout of 5 s."""

WORKER = """
import sys
from tests.integration.test_recording_concurrency import record_batches
from receiver.ledger.store import Store
store = Store(sys.stdin.readline().strip())
print("ready", flush=True)
sys.stdin.readline()
for name in record_batches(store, int(sys.argv[1])):
    print(name)
store.close()
"""


def batches(seed: int) -> list[list[str]]:
    """Return the batches of one thread: overlapping, in their own order, some ids twice."""
    rng = random.Random(seed)
    names = [f"evt_{n:03}" for n in range(EVENTS)]
    return [rng.choices(names, k=BATCH) for _ in range(ROUNDS * EVENTS // BATCH // 4)]


def record_as_sent(store: Store, names: list[str]) -> list[Verdict]:
    """Record a batch; after LedgerUnavailable on SQLite try again, as a provider does after a 503."""
    for _ in range(TRIES if store.sqlite else 0):
        with suppress(LedgerUnavailable):
            return record(store, [delivery(name) for name in names])
    return record(store, [delivery(name) for name in names])


def record_batches(store: Store, seed: int) -> list[str]:
    """Record in `EACH` concurrent threads; return the ids that were first seen here."""
    first: list[str] = []
    gate = threading.Barrier(EACH)

    def work(number: int) -> None:
        gate.wait(60)
        for names in batches(number):
            verdicts = record_as_sent(store, names)
            first.extend(verdict.event_id for verdict in verdicts if verdict.first_seen)

    with ThreadPoolExecutor(EACH) as pool:
        list(pool.map(work, range(seed * EACH, (seed + 1) * EACH)))
    return first


@pytest.fixture
def processes(store: Store) -> Iterator[list[subprocess.Popen[str]]]:
    """Start four processes that record when told to."""
    url = store.url.render_as_string(hide_password=False)
    with ExitStack() as stack:
        started = []
        for seed in range(PROCESSES):
            argv = [sys.executable, "-c", WORKER, str(seed)]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            process = subprocess.Popen(argv, cwd=CHECKOUT, text=True, **pipes)
            stack.enter_context(process)
            stack.callback(process.kill)
            started.append(process)
        for process in started:
            assert process.stdin
            process.stdin.write(f"{url}\n")
            process.stdin.flush()
        for process in started:
            assert process.stdout
            assert process.stdout.readline() == "ready\n", process.communicate()[1]
        yield started


def test_exactly_one_first_seen_each(store: Store, processes: list[subprocess.Popen[str]]) -> None:
    """However threads and processes overlap, each id is first seen once, and every copy is counted."""
    seen: Counter[str] = Counter()
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        out, errors = process.communicate(timeout=90)
        assert process.returncode == 0, errors
        seen.update(out.split())
    sent = Counter(name for n in range(THREADS) for names in batches(n) for name in names)
    assert seen == Counter(dict.fromkeys(sent, 1)), "an event was first seen more than once, or never"
    assert count(store) == len(sent)
    for name in list(sent)[:20]:
        copies = EVENT.c.duplicates == sent[name] - 1
        assert count(store, EVENT.c.event_id == name, copies) == 1, f"a copy of {name} was not counted"


@contextmanager
def slow_inserts(store: Store) -> Iterator[None]:
    """Slow each INSERT down by 2 ms on PostgreSQL, so that concurrent statements meet."""
    if store.sqlite:
        yield
        return
    body = "BEGIN PERFORM pg_sleep(0.002); RETURN NEW; END"
    with store.write() as connection:
        connection.execute(text(f"CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS '{body}'"))
        connection.execute(
            text("CREATE TRIGGER slow BEFORE INSERT ON event FOR EACH ROW EXECUTE FUNCTION slow()")
        )
    try:
        yield
    finally:
        with store.write() as connection:
            connection.execute(text("DROP FUNCTION slow CASCADE"))


def test_batches_in_opposite_orders_do_not_deadlock(store: Store) -> None:
    """Eight threads record the same new ids in opposite orders, and none is aborted."""

    def work(number: int) -> None:
        for round_ in range(3):
            names = [f"{round_}-{n:02}" for n in range(20)]
            record(store, [delivery(name) for name in (reversed(names) if number % 2 else names)])

    with slow_inserts(store), ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert count(store, EVENT.c.duplicates != 7) == 0
