"""The database stops, locks or becomes read-only: no delivery is answered 200 unless it is recorded."""

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests.conftest import Deploy
from tests.services.databases import Databases
from tests.services.deployment import Deployment
from tests.services.ledger import Ledger
from tests.services.postgres import Postgres
from tests.services.valkey import Valkey
from tests.services.waiting import wait_until

QUICK = {"FIRSTSEEN_SWEEP": "300ms", "FIRSTSEEN_LEASE": "30s"}
WRITE_VERSION = 18
"""The byte of a SQLite file's header that makes every library open it read-only when it is above 2."""


@pytest.fixture
def on_postgres(own_postgres: Postgres, valkey: Valkey, deploy: Deploy) -> Deployment:
    """Deploy, migrated, on a PostgreSQL of its own."""
    made = deploy(own_postgres.create_database(), valkey.url, env=QUICK)
    made.migrate()
    return made


@pytest.fixture
def on_sqlite(databases: Databases, valkey: Valkey, deploy: Deploy) -> Deployment:
    """Deploy, migrated, on SQLite."""
    return deploy(databases.migrated("sqlite"), valkey.url, env=QUICK)


def path(deployment: Deployment) -> Path:
    """Return where this deployment's SQLite file is."""
    return Path(deployment.database_url.removeprefix("sqlite:///"))


def assert_unavailable(answer: httpx.Response) -> None:
    """Check for a 503 that asks for another try."""
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert "nothing was recorded" in answer.json()["detail"]


def assert_first(answer: httpx.Response) -> None:
    """Check that this delivery is recorded as first seen."""
    assert answer.status_code == 200
    assert "Idempotent-Replayed" not in answer.headers


def test_a_stopped_postgres(on_postgres: Deployment, own_postgres: Postgres) -> None:
    """Deliveries get 503 while PostgreSQL is down; a handler that ended meanwhile is settled afterwards."""
    on_postgres.start()
    on_postgres.deliver("evt_running", hold=True).raise_for_status()
    wait_until(lambda: on_postgres.handlers.started("evt_running"), "the handler to start")
    own_postgres.halt()
    assert_unavailable(on_postgres.deliver("evt_late"))
    # What /readyz found before holds for a second.
    ready = f"{on_postgres.url}/readyz"
    wait_until(lambda: on_postgres.client.get(ready).status_code == 503, on_postgres.logs)
    assert on_postgres.client.get(ready).json()["status"] == "unavailable"
    assert on_postgres.client.get(f"{on_postgres.url}/healthz").status_code == 200
    on_postgres.handlers.release()
    on_postgres.wait_handled(["evt_running"])
    own_postgres.start()
    assert_first(on_postgres.deliver("evt_late"))
    on_postgres.wait_handled(["evt_late"])
    ledger = Ledger(on_postgres.database_url)
    wait_until(lambda: ledger.states() == {"done": 2}, lambda: f"both to be done: {ledger.states()}")
    assert ledger.outcomes("evt_running") == ["finish"], "it was settled late, not run again"
    assert sorted(on_postgres.handlers.lines()) == ["evt_late", "evt_running"]
    assert all(process.running for process in (*on_postgres.webs, *on_postgres.workers))


def test_a_killed_postgres_keeps_what_was_acknowledged(
    on_postgres: Deployment, own_postgres: Postgres
) -> None:
    """Every delivery answered 200 before PostgreSQL was killed under load is recorded and handled."""
    on_postgres.start()
    acknowledged: list[str] = []
    others: set[int] = set()
    over = threading.Event()

    def deliver(lane: int) -> None:
        for number in range(10_000):
            if over.is_set():
                return
            answer = on_postgres.deliver(f"evt_{lane}_{number}")
            if answer.status_code == 200:
                acknowledged.append(f"evt_{lane}_{number}")
            else:
                others.add(answer.status_code)

    lanes = [threading.Thread(target=deliver, args=(lane,)) for lane in range(4)]
    for lane in lanes:
        lane.start()
    wait_until(lambda: len(acknowledged) > 100, "some load")
    own_postgres.kill()
    wait_until(lambda: others, "the first refusal")
    over.set()
    for lane in lanes:
        lane.join()
    assert others == {503}
    own_postgres.start()
    on_postgres.wait_handled(acknowledged)
    recorded = {
        row["event_id"] for row in Ledger(on_postgres.database_url).rows("SELECT event_id FROM event")
    }
    assert set(acknowledged) <= recorded


def test_a_locked_sqlite(on_sqlite: Deployment) -> None:
    """Deliveries get 503 while another process holds SQLite's lock, and are recorded once it is released.

    The answer comes before SQLite gives up: so it is not known whether the first copy is recorded.
    """
    on_sqlite.start()
    on_sqlite.deliver("evt_running", hold=True).raise_for_status()
    wait_until(lambda: on_sqlite.handlers.started("evt_running"), "the handler to start")
    with closing(sqlite3.connect(path(on_sqlite), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        on_sqlite.handlers.release()
        answer = on_sqlite.deliver("evt_late")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert "it may have this or not" in answer.json()["detail"]
        other.execute("ROLLBACK")
    assert on_sqlite.deliver("evt_late").status_code == 200
    on_sqlite.wait_handled(["evt_late", "evt_running"])
    ledger = Ledger(on_sqlite.database_url)
    wait_until(lambda: ledger.states() == {"done": 2}, lambda: f"both to be done: {ledger.states()}")
    assert ledger.outcomes("evt_running") == ["finish"], "it was settled late, not run again"


def test_a_read_only_sqlite(on_sqlite: Deployment) -> None:
    """A read-only SQLite file gives 503 to every delivery, and works again once it is writable."""
    make_read_only(path(on_sqlite), yes=True)
    on_sqlite.start()
    assert_unavailable(on_sqlite.deliver("evt_1"))
    (worker,) = on_sqlite.workers
    wait_until(lambda: "No sweep" in worker.logs(), worker.logs)
    on_sqlite.forget(on_sqlite.webs[0])
    on_sqlite.forget(worker)
    make_read_only(path(on_sqlite), yes=False)
    on_sqlite.start()
    assert_first(on_sqlite.deliver("evt_1"))
    on_sqlite.wait_handled(["evt_1"])


def make_read_only(file: Path, *, yes: bool) -> None:
    """Make a SQLite file read-only for everybody, root too, or writable again."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with file.open("r+b") as opened:
        opened.seek(WRITE_VERSION)
        opened.write(b"\3" if yes else b"\2")
