"""The store: every failure of the database is LedgerUnavailable, and a commit is on disk."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import event, func, inspect, select, text

from receiver.ledger.errors import LedgerUnavailable
from receiver.ledger.intake import record
from receiver.ledger.queue import expire, prune, starved, take_nudges
from receiver.ledger.schema import check_schema, migrate
from receiver.ledger.store import Store
from receiver.ledger.tables import EVENT
from tests.integration.steps import LEASE, ONLY_POSTGRES, ONLY_SQLITE, SWEEP, count, deliver, delivery, hooked
from tests.services.claiming import claim
from tests.services.databases import driver_url
from tests.services.postgres import Postgres

WRITES: dict[str, Callable[[Store], Any]] = {
    "record": lambda store: record(store, [delivery(), delivery("evt_2")]),
    "claim": lambda store: claim(store, uuid4(), lease=LEASE, worker="w"),
    "expire": expire,
    "nudges": lambda store: take_nudges(store, SWEEP),
    "prune": lambda store: prune(store, {}),
    "migrate": migrate,
}
USES = WRITES | {"starved": lambda store: starved(store, SWEEP), "schema": check_schema}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit the waits of stores made in this test to a second."""
    monkeypatch.setattr("receiver.ledger.store.WAIT", 1.0)


@pytest.fixture
def own() -> Iterator[Callable[..., Store]]:
    """Open further stores, which stand for other processes and are closed after the test."""
    opened = []

    def make(url: str, **settings: Any) -> Store:
        opened.append(Store(url, **settings))
        return opened[-1]

    yield make
    for item in opened:
        item.close()


@pytest.fixture(scope="module")
def stoppable() -> Iterator[Postgres]:
    """Run a PostgreSQL that tests may stop."""
    with Postgres() as server:
        yield server


def as_role(store: Store, setting: str) -> str:
    """Return the URL of the store's database for a new role with a setting or a limit."""
    name = f"role_{uuid4().hex}"
    with store.engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {name} LOGIN PASSWORD 'x'"))
        connection.execute(text(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}"))
        connection.execute(text(f"ALTER ROLE {name} {setting}"))
    return store.url.set(username=name, password="x").render_as_string(hide_password=False)


def refuses(store: Store, uses: dict[str, Callable[[Store], Any]] = USES) -> None:
    """Check that each use of the ledger raises LedgerUnavailable."""
    for name, use in uses.items():
        with pytest.raises(LedgerUnavailable) as caught:
            use(store)
        assert "does not answer" in str(caught.value), name
        assert "password" not in str(caught.value), name


@pytest.mark.usefixtures("impatient")
def test_a_stopped_server_is_unavailable_and_comes_back(
    stoppable: Postgres, own: Callable[..., Store]
) -> None:
    """Dead pooled connections are detected, and the ledger works once the server is back."""
    store = own(driver_url(stoppable.create_database()))
    migrate(store)
    stoppable.halt()
    try:
        refuses(store)
    finally:
        stoppable.start()
    assert deliver(store).first_seen


@pytest.mark.usefixtures("impatient")
def test_a_killed_server_is_unavailable_and_keeps_what_was_committed(
    stoppable: Postgres, own: Callable[..., Store]
) -> None:
    """An acknowledged event survives kill -9 and a restart."""
    store = own(driver_url(stoppable.create_database()))
    migrate(store)
    deliver(store)
    stoppable.kill()
    try:
        refuses(store)
    finally:
        stoppable.start()
    assert not deliver(store).first_seen


@pytest.mark.parametrize(**ONLY_POSTGRES)
@pytest.mark.parametrize("moment", ["INSERT INTO event", "UPDATE event", "commit"])
def test_a_connection_that_dies_midway_records_nothing(store: Store, moment: str) -> None:
    """At whichever statement the backend dies, nothing is recorded, and the next try succeeds."""
    deliver(store, "old")
    killed = []

    def kill(dbapi: Any) -> None:
        if not killed:
            killed.append(dbapi.info.backend_pid)
            with psycopg.connect(dbapi.info.dsn, password=dbapi.info.password, autocommit=True) as other:
                other.execute("SELECT pg_terminate_backend(%s, 5000)", killed)

    def at_statement(_connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if moment in statement:
            kill(cursor.connection)

    def at_commit(connection: Any) -> None:
        kill(connection.connection.dbapi_connection)

    name, hook = ("commit", at_commit) if moment == "commit" else ("before_cursor_execute", at_statement)
    with hooked(store, name, hook), pytest.raises(LedgerUnavailable):
        record(store, [delivery("new"), delivery("old")])
    assert killed
    assert count(store, EVENT.c.event_id == "new") == 0
    assert count(store, EVENT.c.duplicates > 0) == 0
    assert [item.first_seen for item in record(store, [delivery("new"), delivery("old")])] == [True, False]


@pytest.mark.parametrize(**ONLY_POSTGRES)
def test_a_connection_that_died_idle_is_replaced(store: Store) -> None:
    """A connection that died while idle costs no failed delivery."""
    deliver(store)
    with store.engine.connect() as one:
        pid = one.connection.dbapi_connection.info.backend_pid  # type: ignore[union-attr]
    dsn = store.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with closing(psycopg.connect(dsn)) as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    assert not deliver(store).first_seen


@pytest.mark.parametrize(**ONLY_POSTGRES)
@pytest.mark.parametrize(
    "wrong",
    [
        {"password": "wrong"},
        {"database": "missing"},
        {"port": 1},
        {"host": "127.0.0.1", "username": "nobody"},
    ],
)
def test_a_connection_that_cannot_open_is_unavailable(
    store: Store, own: Callable[..., Store], wrong: dict[str, Any]
) -> None:
    """Wrong passwords, missing databases and closed ports are LedgerUnavailable."""
    refuses(own(store.url.set(**wrong).render_as_string(hide_password=False)))


@pytest.mark.parametrize(**ONLY_POSTGRES)
def test_too_many_connections_are_unavailable(store: Store, own: Callable[..., Store]) -> None:
    """A role without a free connection gets LedgerUnavailable."""
    refuses(own(as_role(store, "CONNECTION LIMIT 0")))


@pytest.mark.parametrize(**ONLY_POSTGRES)
def test_a_database_that_only_reads_is_unavailable_for_writing(
    store: Store, own: Callable[..., Store]
) -> None:
    """On a read-only standby writes are refused, and reads work."""
    other = own(as_role(store, "SET default_transaction_read_only = on"))
    refuses(other, {name: use for name, use in WRITES.items() if name != "migrate"})
    check_schema(other)
    assert starved(other, SWEEP) is False
    assert count(store) == 0


@pytest.mark.parametrize(**ONLY_POSTGRES)
def test_a_statement_timeout_is_unavailable(store: Store, own: Callable[..., Store]) -> None:
    """A statement timeout is LedgerUnavailable, and so a 503 instead of a 500."""
    deliver(store)
    other = own(as_role(store, "SET statement_timeout = '200ms'"))
    with store.engine.connect() as holder:
        holder.execute(select(EVENT.c.id).with_for_update())
        with pytest.raises(LedgerUnavailable):
            deliver(other)
        holder.rollback()


@pytest.mark.parametrize(**ONLY_POSTGRES)
def test_a_deadlock_is_unavailable(store: Store) -> None:
    """The victim of a deadlock gets LedgerUnavailable, so the provider delivers again."""
    deliver(store, "a")
    deliver(store, "b")
    both = threading.Barrier(2)

    def cross(first: str, second: str) -> str:
        try:
            with store.write() as connection:
                for name in (first, second):
                    one = EVENT.update().where(EVENT.c.event_id == name)
                    connection.execute(one.values(duplicates=EVENT.c.duplicates + 1))
                    if name == first:
                        both.wait(60)
        except LedgerUnavailable:
            return "unavailable"
        return "done"

    with ThreadPoolExecutor(2) as pool:
        ends = [job.result() for job in [pool.submit(cross, "a", "b"), pool.submit(cross, "b", "a")]]
    assert sorted(ends) == ["done", "unavailable"]


@pytest.mark.usefixtures("impatient")
def test_an_exhausted_pool_is_unavailable(store: Store, own: Callable[..., Store]) -> None:
    """A thread without a connection gets LedgerUnavailable within its timeout."""
    small = own(store.url.render_as_string(hide_password=False), pool=1)
    with small.engine.connect():
        begun = time.monotonic()
        with pytest.raises(LedgerUnavailable):
            deliver(small)
        assert time.monotonic() - begun >= 1
    assert deliver(small).first_seen


def test_a_block_that_raises_records_nothing(store: Store) -> None:
    """An error rolls the whole transaction back and is raised unchanged."""
    made = deliver(store).event

    def fail() -> None:
        with store.write() as connection:
            connection.execute(EVENT.delete())
            connection.execute(text("CREATE TABLE half (n int)"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert "half" not in inspect(store.engine).get_table_names()
    assert count(store, EVENT.c.id == made) == 1


def shown(store: Store, name: str, *, writes: bool) -> str:
    """Return a PostgreSQL setting as it is inside a transaction."""
    with store.write() if writes else store.read() as connection:
        return str(connection.execute(select(func.current_setting(name))).scalar_one())


@pytest.mark.parametrize(**ONLY_POSTGRES)
@pytest.mark.parametrize(
    ("role", "expected"),
    [("off", "on"), ("local", "local"), ("remote_write", "remote_write"), ("on", "on")],
)
def test_a_commit_is_durable_whatever_the_role_says(
    store: Store, own: Callable[..., Store], role: str, expected: str
) -> None:
    """Commits are flushed, even if the role or database has synchronous_commit off."""
    other = own(as_role(store, f"SET synchronous_commit = {role}"))
    assert shown(other, "synchronous_commit", writes=True) == expected
    assert shown(other, "synchronous_commit", writes=False) == role
    with other.engine.connect() as connection:
        left = connection.execute(select(func.current_setting("synchronous_commit"))).scalar_one()
    assert left == role, "the setting outlives its transaction, which breaks PgBouncer's other clients"


@pytest.mark.parametrize(**ONLY_POSTGRES)
def test_no_writer_waits_for_a_lock_longer_than_for_a_connection(store: Store) -> None:
    """The lock timeout of a write ends before the limit on silence, which would cost the connection."""
    assert shown(store, "lock_timeout", writes=True) == "3s"


@pytest.mark.parametrize(**ONLY_POSTGRES)
def test_a_stricter_default_isolation_changes_nothing(store: Store, own: Callable[..., Store]) -> None:
    """Concurrent deliveries succeed where the default isolation is serializable."""
    other = own(as_role(store, "SET default_transaction_isolation = serializable"))
    assert shown(other, "transaction_isolation", writes=True) == "read committed"
    gate = threading.Barrier(4)

    def send(_: int) -> bool:
        gate.wait(60)
        return deliver(other).first_seen

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(send, range(4))) == [False, False, False, True]


def test_the_clock_is_utc_and_can_be_shifted(store: Store) -> None:
    """`now` is the present time, and `shift` moves it."""
    for shift in (timedelta(0), timedelta(days=400), timedelta(days=-3)):
        store.shift = shift
        with store.read() as connection:
            report = connection.execute(select(store.now())).scalar_one()
            soon = connection.execute(select(store.after(timedelta(hours=1)))).scalar_one()
        assert abs(report - datetime.now(UTC) - shift) < timedelta(minutes=5)
        assert abs(soon - report - timedelta(hours=1)) < timedelta(seconds=5)


def sqlite_file(store: Store) -> Path:
    """Return the file of a store on SQLite."""
    return Path(str(store.url.database))


@pytest.mark.parametrize(**ONLY_SQLITE)
def test_sqlite_commits_to_disk(store: Store) -> None:
    """Every pooled connection has WAL, full sync and foreign keys."""
    with store.engine.connect() as one, store.engine.connect() as other:
        for connection in (one, other):
            pragmas = ("journal_mode", "synchronous", "foreign_keys")
            report = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in pragmas]
            assert report == ["wal", 2, 1]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(**ONLY_SQLITE)
def test_sqlite_locked_by_another_process_is_unavailable(store: Store, own: Callable[..., Store]) -> None:
    """Writers time out after a second, queued ones too, and reads work."""
    other = own(str(store.url))
    other.engine.dispose()
    with closing(sqlite3.connect(sqlite_file(store), isolation_level=None)) as foreign:
        foreign.execute("BEGIN IMMEDIATE")
        with ThreadPoolExecutor(3) as pool:
            jobs = [pool.submit(deliver, other) for _ in range(3)]
            for job in jobs:
                with pytest.raises(LedgerUnavailable):
                    job.result(timeout=60)
        assert starved(other, SWEEP) is False
        foreign.execute("ROLLBACK")
    assert deliver(other).first_seen


@pytest.mark.parametrize("pragma", ["query_only = on", "max_page_count = 1"])
def test_sqlite_that_cannot_write_is_unavailable(
    tmp_path: Path, own: Callable[..., Store], pragma: str
) -> None:
    """On a read-only or full database no delivery of the batch is recorded."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    fine, other = own(url), own(url)
    migrate(fine)
    event.listen(other.engine, "connect", lambda connection, _: connection.execute(f"PRAGMA {pragma}"))
    with pytest.raises(LedgerUnavailable):
        record(other, [delivery("a"), delivery("b", b"x" * 1_000_000)])
    assert count(fine) == 0


@pytest.mark.parametrize("content", [b"no database at all " * 100, None])
def test_a_file_that_is_no_database_is_unavailable(
    tmp_path: Path, own: Callable[..., Store], content: bytes | None
) -> None:
    """A garbage file, or a folder in its place, is LedgerUnavailable."""
    place = tmp_path / "ledger.db"
    if content is None:
        place.mkdir()
    else:
        place.write_bytes(content)
    refuses(own(f"sqlite:///{place}"))


def test_sqlite_makes_its_folder(tmp_path: Path, own: Callable[..., Store]) -> None:
    """The first start creates the folder; the parameters of a URI create none."""
    migrate(own(f"sqlite:///{tmp_path}/var/deep/ledger.db"))
    migrate(own(f"sqlite:///file:{tmp_path}/other.db?uri=true"))
    assert (tmp_path / "other.db").is_file()
    assert (tmp_path / "var" / "deep" / "ledger.db").exists()
    assert not Path("file:").exists()


def test_two_processes_that_read_and_then_write_do_not_fail(store: Store, own: Callable[..., Store]) -> None:
    """A deferred SQLite transaction would fail here, because its snapshot is stale at the write."""
    made = deliver(store).event
    stores = [own(store.url.render_as_string(hide_password=False)) for _ in range(2)]

    def work(opened: Store) -> None:
        for _ in range(40):
            with opened.write() as connection:
                this = EVENT.c.id == made
                connection.execute(select(EVENT.c.duplicates).where(this)).scalar_one()
                connection.execute(EVENT.update().where(this).values(duplicates=EVENT.c.duplicates + 1))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, stores))
    assert count(store, EVENT.c.duplicates == 80) == 1
