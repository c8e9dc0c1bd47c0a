"""Connections: never more than the pool, as counted by the server, and none held by a waiting thread."""

import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing

import psycopg
import pytest

from receiver.ledger.intake import record
from receiver.ledger.lease import Outcome
from receiver.ledger.queue import expire, renew, settle, take_nudges
from receiver.ledger.states import Move
from receiver.ledger.store import Store
from tests.integration.steps import LEASE, ONLY_POSTGRES, SWEEP, deliver, delivery, take
from tests.services.claiming import claim
from tests.services.waiting import wait_until

POOL = 3


@pytest.fixture
def small(store: Store) -> Iterator[Store]:
    """Return a store with three connections, identified by application_name on the server."""
    url = store.url.update_query_dict({"application_name": f"pool-{uuid.uuid4().hex[:8]}"})
    made = Store(url.render_as_string(hide_password=False), pool=POOL)
    yield made
    made.close()


class Watch:
    """Polls the server for a store's number of connections and keeps the maximum."""

    def __init__(self, store: Store) -> None:
        self.name = store.url.query["application_name"]
        self.dsn = store.url.set(drivername="postgresql", query={}).render_as_string(hide_password=False)
        self.most, self.stop = 0, threading.Event()

    def now(self, state: str = "%") -> int:
        """Return the present number of connections."""
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND state LIKE %s"
        with closing(psycopg.connect(self.dsn, autocommit=True)) as connection:
            found = connection.execute(query, [self.name, state]).fetchone()
        assert found
        return int(found[0])

    def run(self) -> None:
        """Poll until stopped."""
        while not self.stop.wait(0.02):
            self.most = max(self.most, self.now())


@pytest.mark.parametrize(**ONLY_POSTGRES)
def test_connections_stay_within_the_pool_under_load(small: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty-four busy threads use at most three connections."""
    # On a busy machine a turn may come late, which is not what this is about.
    monkeypatch.setattr("receiver.ledger.store.WAIT", 60.0)
    watch = Watch(small)

    def work(n: int) -> None:
        for k in range(6):
            made = record(small, [delivery(f"{n}-{k}"), delivery(f"shared-{k}")])[0].event
            held = claim(small, made, lease=LEASE, worker="w")
            assert held is not None
            renew(small, [held], lease=LEASE)
            assert settle(small, [(held, Outcome(Move.FINISH))])
            take_nudges(small, SWEEP)
            expire(small)

    with ThreadPoolExecutor(25) as pool:
        looking = pool.submit(watch.run)
        jobs = [pool.submit(work, n) for n in range(24)]
        wait(jobs)
        watch.stop.set()
        for job in (*jobs, looking):
            job.result()
    assert 1 < watch.most <= POOL, f"{watch.most} connections at once"


@pytest.mark.parametrize(**ONLY_POSTGRES)
def test_no_connection_is_held_between_statements_of_the_protocol(small: Store) -> None:
    """While a handler runs, its claim holds no open transaction."""
    held = take(small, deliver(small).event)
    watch = Watch(small)
    assert (watch.now("idle in transaction%"), watch.now("active"), watch.now()) == (0, 0, 1)
    assert settle(small, [(held, Outcome(Move.FINISH))])


@pytest.mark.parametrize(**ONLY_POSTGRES)
def test_a_closed_store_leaves_no_connection(small: Store) -> None:
    """The server sees no connection of a closed store."""
    deliver(small)
    small.close()
    wait_until(lambda: Watch(small).now() == 0, "the server to see them closed")


def test_no_thread_starves(store: Store) -> None:
    """Of sixteen threads on a small pool, none falls far behind the first to finish."""
    url = store.url.render_as_string(hide_password=False)
    narrow = Store(url, pool=2)
    done, report = [0] * 16, list[list[int]]()
    queue, width = (narrow._writer, 1) if narrow._writer else (narrow._pool, 2)

    def work(n: int) -> None:
        for k in range(10):
            deliver(narrow, f"{n}-{k}")
            done[n] += 1
        report.append(list(done))

    try:
        with ThreadPoolExecutor(16) as pool:
            with ExitStack() as taken:
                for _ in range(width):
                    taken.enter_context(queue.turn(60))
                jobs = [pool.submit(work, n) for n in range(16)]
                # Every thread waits in the queue before the first one runs, whenever the machine starts it.
                wait_until(lambda: len(queue._waiting) == 16, "all threads to wait")
            wait(jobs)
            for job in jobs:
                job.result()
    finally:
        narrow.close()
    assert min(report[0]) >= 2, f"when the first thread ended, the others had recorded {report[0]}"
