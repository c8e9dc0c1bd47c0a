"""The database stops, freezes, locks or only reads: no delivery is answered 200 unless it is recorded."""

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import httpx
import psycopg
import pytest

from tests.conftest import Deploy
from tests.services.databases import Databases
from tests.services.deployment import Deployment, timed
from tests.services.ledger import Ledger
from tests.services.pgbouncer import POOL, PgBouncer
from tests.services.postgres import Postgres
from tests.services.private_server import Server
from tests.services.valkey import Valkey
from tests.services.waiting import wait_until

QUICK = {"FIRSTSEEN_SWEEP": "300ms", "FIRSTSEEN_LEASE": "30s"}

BOUND = 5.0
"""Seconds within which a delivery is answered, whatever the database does."""

SLACK = 3.0
"""Seconds that a busy machine may add."""

SECONDS = 10.0
"""How soon all is well again, where nothing has to be started."""

WRITE_VERSION = 18
"""The byte of a SQLite file's header that makes every library open it read-only when it is above 2."""


@pytest.fixture
def on_postgres(own_postgres: Postgres, valkey: Valkey, deploy: Deploy) -> Deployment:
    """Deploy, migrated, on a PostgreSQL of its own."""
    made = deploy(own_postgres.create_database(), valkey.url, env=QUICK)
    made.migrate()
    return made


@pytest.fixture
def on_pgbouncer(own_postgres: Postgres, pgbouncer: PgBouncer, valkey: Valkey, deploy: Deploy) -> Deployment:
    """Deploy, migrated, on a PostgreSQL of its own behind PgBouncer in transaction mode."""
    made = deploy(pgbouncer.url(own_postgres.create_database()), valkey.url, env=QUICK)
    made.migrate()
    return made


@pytest.fixture(params=["postgres", "pgbouncer", "behind_pgbouncer"])
def freezable(request: pytest.FixtureRequest) -> tuple[Deployment, Server]:
    """Deploy on a server that this test may freeze: PostgreSQL, a PgBouncer before it, or one behind that."""
    deployment = "on_postgres" if request.param == "postgres" else "on_pgbouncer"
    server = "pgbouncer" if request.param == "pgbouncer" else "own_postgres"
    return request.getfixturevalue(deployment), request.getfixturevalue(server)


@pytest.fixture
def on_sqlite(databases: Databases, valkey: Valkey, deploy: Deploy) -> Deployment:
    """Deploy, migrated, on SQLite."""
    return deploy(databases.migrated("sqlite"), valkey.url, env=QUICK)


def path(deployment: Deployment) -> Path:
    """Return where this deployment's SQLite file is."""
    return Path(deployment.database_url.removeprefix("sqlite:///"))


def assert_unavailable(answer: httpx.Response, *, certain: bool = True) -> None:
    """Check for a 503 that asks for another try; unless `certain`, it may be unknown what was recorded."""
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert answer.headers["Content-Type"] == "application/problem+json"
    detail = answer.json()["detail"]
    assert "nothing was recorded" in detail or (not certain and "it may have this or not" in detail)


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
    wait_until(lambda: readiness(on_postgres) == (503, "unavailable"), "/readyz to say so")
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


def direct(deployment: Deployment, server: Postgres) -> str:
    """Return the address of a deployment's database without a pooler."""
    return server.url(deployment.database_url.rpartition("/")[2])


@contextmanager
def frozen(server: Server) -> Iterator[None]:
    """Freeze all processes of a server inside the block."""
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


def readiness(deployment: Deployment) -> tuple[int, str]:
    """Return what /readyz says, which is a second old at the most; it must say so in time."""
    answer, took = timed(deployment.client.get, f"{deployment.url}/readyz")
    assert took < BOUND + SLACK
    return answer.status_code, answer.json()["status"]


def assert_refused_in_time(deployment: Deployment, ids: list[str], *, ready: bool = False) -> None:
    """Deliver these at once: each gets 503 within the bound, /healthz says 200 meanwhile, and /readyz 503.

    With `ready`, /readyz may say anything.
    """
    with ThreadPoolExecutor(len(ids)) as pool:
        waiting = [pool.submit(timed, deployment.deliver, event_id) for event_id in ids]
        alive, took = timed(deployment.client.get, f"{deployment.url}/healthz")
        assert (alive.status_code, took < 1.0) == (200, True), f"/healthz took {took:.1f} s"
        if not ready:
            wait_until(lambda: readiness(deployment) == (503, "unavailable"), "/readyz to say so")
        for answer, took in (job.result() for job in waiting):
            # Of many at once, some end while a second commit is under way.
            assert_unavailable(answer, certain=False)
            assert took < BOUND + SLACK


def assert_well_again(deployment: Deployment, ids: list[str], database_url: str) -> None:
    """Check that all is well within seconds: these are taken now, and each is recorded and handled once."""
    wait_until(
        lambda: deployment.deliver(ids[0]).status_code == 200, "a delivery to be taken", timeout=SECONDS
    )
    deployment.wait_ready(SECONDS)
    assert {answer.status_code for answer in deployment.deliver_many(ids)} == {200}
    deployment.wait_handled(ids)
    ledger = Ledger(database_url)
    wait_until(lambda: set(ledger.states()) == {"done"}, lambda: f"all to be done: {ledger.states()}")
    events = {row["event_id"]: row for row in ledger.events()}
    assert set(events) >= set(ids)
    assert all(row["body"] and row["headers"] for row in events.values())
    counted = ledger.rows(
        "SELECT sum(count) AS n FROM counter WHERE kind = 'delivery' AND what = 'first seen'"
    )
    assert counted[0]["n"] == len(events), "a row without its count, or a count without its row"
    assert sorted(deployment.handlers.lines()) == sorted(events), "one of them was handled twice"
    assert all(process.running for process in (*deployment.webs, *deployment.workers))


def test_a_frozen_database(freezable: tuple[Deployment, Server], own_postgres: Postgres) -> None:
    """A server that accepts and says nothing costs deliveries a 503 within seconds, and nothing else."""
    deployment, server = freezable
    deployment.start()
    deployment.deliver("evt_running", hold=True).raise_for_status()
    wait_until(lambda: deployment.handlers.started("evt_running"), "the handler to start")
    ids = [f"evt_{number}" for number in range(20)]
    (worker,) = deployment.workers
    with frozen(server):
        assert_refused_in_time(deployment, ids)
        deployment.handlers.release()
        deployment.wait_handled(["evt_running"])
        wait_until(lambda: "No sweep: The ledger's database does not answer" in worker.logs(), worker.logs)
    database_url = direct(deployment, own_postgres)
    assert_well_again(deployment, ids, database_url)
    assert Ledger(database_url).outcomes("evt_running") == ["finish"], "it was settled late, not run again"
    assert "Traceback" not in deployment.logs()


def test_a_database_that_freezes_under_load(
    freezable: tuple[Deployment, Server], own_postgres: Postgres
) -> None:
    """Whatever statements it freezes in, each delivery that got 200 is recorded, and handled once."""
    deployment, server = freezable
    deployment.start(web=2)
    acknowledged, others, over = list[str](), list[tuple[str, int, float]](), threading.Event()

    def deliver(lane: int) -> None:
        for number in range(10_000):
            if over.is_set():
                return
            name = f"evt_{lane}_{number}"
            answer, took = timed(deployment.deliver, name, url=deployment.urls[lane % 2])
            if answer.status_code == 200:
                acknowledged.append(name)
            else:
                others.append((name, answer.status_code, took))

    with ThreadPoolExecutor(8) as pool:
        lanes = [pool.submit(deliver, lane) for lane in range(8)]
        wait_until(lambda: len(acknowledged) > 100, "some load")
        with frozen(server):
            wait_until(lambda: len(others) >= 8, "each lane to be refused")
        seen = len(acknowledged)
        wait_until(lambda: len(acknowledged) > seen + 100, "deliveries to be taken again", timeout=SECONDS)
        over.set()
        for lane in lanes:
            lane.result()
    assert {status for _, status, _ in others} == {503}
    assert max(took for _, _, took in others) < BOUND + SLACK
    database_url = direct(deployment, own_postgres)
    assert_well_again(deployment, acknowledged + [name for name, _, _ in others], database_url)


def test_a_pool_that_is_used_up(on_pgbouncer: Deployment, own_postgres: Postgres) -> None:
    """PgBouncer's connections are all inside of others' transactions: deliveries get 503 in time."""
    on_pgbouncer.start()
    ids = [f"evt_{number}" for number in range(20)]
    url = on_pgbouncer.database_url
    with ExitStack() as held:
        for _ in range(POOL):
            held.enter_context(closing(psycopg.connect(url))).execute("SELECT 1")
        assert_refused_in_time(on_pgbouncer, ids)
    assert_well_again(on_pgbouncer, ids, direct(on_pgbouncer, own_postgres))


def test_connections_that_all_wait_for_a_lock(on_postgres: Deployment) -> None:
    """Another's lock holds all of web's connections: deliveries get 503 in time."""
    on_postgres.start()
    ids = [f"evt_{number}" for number in range(20)]
    with closing(psycopg.connect(on_postgres.database_url)) as other:
        other.execute("LOCK TABLE event IN EXCLUSIVE MODE")
        assert_refused_in_time(on_postgres, ids, ready=True)
        other.rollback()
    assert_well_again(on_postgres, ids, on_postgres.database_url)


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
    """Deliveries get 503 while another process holds SQLite's lock, and are recorded once it is released."""
    on_sqlite.start()
    on_sqlite.deliver("evt_running", hold=True).raise_for_status()
    wait_until(lambda: on_sqlite.handlers.started("evt_running"), "the handler to start")
    with closing(sqlite3.connect(path(on_sqlite), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        on_sqlite.handlers.release()
        assert_unavailable(on_sqlite.deliver("evt_late"))
        other.execute("ROLLBACK")
    assert_first(on_sqlite.deliver("evt_late"))
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
