"""Limits under load: messages in the broker, and connections to the database."""

import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import psycopg
import pytest
from celery import Celery

from config.broker import publisher_options, wake_message
from receiver.ledger.lease import Claim, Outcome
from receiver.ledger.store import Store
from receiver.ledger.tables import EVENT
from tests.conftest import Deploy
from tests.services.databases import driver_url
from tests.services.ledger import Ledger
from tests.services.postgres import Postgres
from tests.services.valkey import Valkey
from tests.services.waiting import wait_until
from worker.runner import Limits, Runner
from worker.sweeper import Sweeper

WAITING = 10_000
SWEEPERS = 2
SWEEP = timedelta(seconds=5)
CONNECTIONS = 20
QUEUE = "firstseen"


def fill(store: Store, count: int) -> None:
    """Insert that many due events."""
    due = datetime.now(UTC) - timedelta(hours=1)
    row = {
        "source": "stripe",
        "type": "x",
        "state": "waiting",
        "due_at": due,
        "received_at": due,
        "body_hash": "0",
    }
    rows = [{**row, "id": uuid4(), "event_id": f"evt_{number}"} for number in range(count)]
    with store.write() as connection:
        connection.execute(EVENT.insert(), rows)


def sweeper(store: Store, broker: str) -> Sweeper:
    """Make a sweeper with a real broker; its runner fails if it runs anything."""
    publisher = Celery("test", **publisher_options(broker), set_as_current=False)

    def nudge() -> bool:
        publisher.send_task(**wake_message())
        return True

    def run(_held: Claim) -> Outcome:
        raise AssertionError("nothing may run here")

    limits = Limits(timedelta(minutes=1), timedelta(minutes=10), SWEEP, 4)
    return Sweeper(store, SWEEP, nudge, Runner(store, run, limits))


def test_a_dead_consumer_does_not_fill_the_broker(migrated_url: str, valkey: Valkey) -> None:
    """10,000 waiting events and ten sweeps of two sweepers at once leave at most 2,000 messages."""
    stores = [Store(driver_url(migrated_url), pool=2) for _ in range(SWEEPERS)]
    fill(stores[0], WAITING)
    sweepers = [sweeper(store, valkey.url) for store in stores]
    for number in range(10):
        for store in stores:
            store.shift = number * SWEEP
        both = [threading.Thread(target=item.run_once) for item in sweepers]
        for item in both:
            item.start()
        for item in both:
            item.join()
    assert 1000 <= valkey.queue_length(QUEUE) <= 2000
    nudged = Ledger(migrated_url).rows(
        "SELECT nudges, count(*) AS n FROM event GROUP BY nudges ORDER BY nudges"
    )
    assert nudged[0] == {"nudges": 0, "n": WAITING - 1000}, "the others wait their turn"
    for store in stores:
        store.close()


@pytest.fixture
def small_postgres() -> Iterator[Postgres]:
    """Start a PostgreSQL with as few connections as the smallest hosting plans allow."""
    with Postgres(max_connections=CONNECTIONS) as server:
        yield server


def ordinary(server: Postgres) -> str:
    """Return the URL of a new database owned by a role that may not use reserved connections."""
    url = server.create_database()
    name = url.rpartition("/")[2]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE ROLE app LOGIN PASSWORD 'app'")
        connection.execute(f"ALTER DATABASE {name} OWNER TO app")
    return f"postgres://app:app@127.0.0.1:{server.port}/{name}"


def test_four_processes_share_twenty_connections(
    small_postgres: Postgres, valkey: Valkey, deploy: Deploy
) -> None:
    """Two web and two worker processes under load stay within 20 connections, without an error response."""
    deployment = deploy(ordinary(small_postgres), valkey.url)
    deployment.migrate()
    deployment.start(web=2, worker=2)
    ids = [f"evt_{number}" for number in range(300)]
    peak = [0]
    over = threading.Event()
    watch = threading.Thread(target=watch_connections, args=(small_postgres, peak, over))
    watch.start()
    answers = deployment.deliver_many(ids, threads=32, sleep=0.05)
    deployment.wait_handled(ids)
    over.set()
    watch.join()
    assert Counter(answer.status_code for answer in answers) == {200: len(ids)}
    assert Counter(deployment.handlers.lines()) == Counter(ids)
    assert "does not answer" not in deployment.logs()
    assert 8 <= peak[0] <= CONNECTIONS - 3, "PostgreSQL reserves three for superusers"
    wait_until(lambda: Ledger(deployment.database_url).states() == {"done": len(ids)}, "all to be done")


def watch_connections(server: Postgres, peak: list[int], over: threading.Event) -> None:
    """Keep the highest number of connections seen."""
    while not over.wait(0.2):
        peak[0] = max(peak[0], server.connections())
