"""Limits on waits: a PostgreSQL that is silent (frozen, or a stalled disk) costs seconds, never a thread."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import text

from receiver.ledger.errors import LedgerUnavailable
from receiver.ledger.intake import Recorder
from receiver.ledger.lease import Outcome
from receiver.ledger.pool import AnswerTimeout, LimitedConnection
from receiver.ledger.queue import claim_due, expire, settle, starved, take_nudges
from receiver.ledger.schema import check_schema, migrate
from receiver.ledger.states import Move
from receiver.ledger.store import WAIT, Store
from receiver.ledger.tables import EVENT
from tests.integration.steps import LEASE, SWEEP, count, deliver, delivery, hooked, take
from tests.services.databases import driver_url
from tests.services.postgres import Postgres
from tests.services.raw_server import RawServer, stay
from tests.services.waiting import wait_until

SHORT = 0.5
"""Seconds of a limit where the server does nothing for much longer."""

LEAST = 3.0
"""Seconds to get a connection."""

SLACK = 2.8
"""Seconds that a busy machine may add: fewer than a second wait would."""

SLEEP = text("SELECT pg_sleep(20)")


@pytest.fixture(scope="module")
def freezable() -> Iterator[Postgres]:
    """Run a PostgreSQL that tests may freeze."""
    with Postgres() as server:
        yield server


@pytest.fixture
def store(freezable: Postgres) -> Iterator[Store]:
    """Return a store of two connections on an empty ledger."""
    opened = Store(driver_url(freezable.create_database()), pool=2)
    migrate(opened)
    yield opened
    freezable.thaw()
    opened.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let threads give up sooner to get a connection."""
    monkeypatch.setattr("receiver.ledger.store.WAIT", LEAST)


@contextmanager
def frozen(server: Postgres) -> Iterator[None]:
    """Freeze a server inside the block."""
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


@contextmanager
def unavailable(within: float) -> Iterator[None]:
    """Check that the block raises LedgerUnavailable within so many seconds."""
    begun = time.monotonic()
    with pytest.raises(LedgerUnavailable):
        yield
    assert time.monotonic() - begun < within + SLACK


def pid(store: Store) -> int:
    """Return the process that serves the connection which the store uses next."""
    with store.read() as connection:
        return int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())


def test_a_silent_statement_ends_at_its_limit(store: Store) -> None:
    """The transaction raises, its connection is not used again, and the next one works at once."""
    before = pid(store)
    with unavailable(within=SHORT), store.write(limit=SHORT) as connection:
        connection.execute(SLEEP)
    begun = time.monotonic()
    assert pid(store) != before
    assert deliver(store).first_seen
    assert time.monotonic() - begun < SLACK


def test_a_silent_batch_ends_at_its_limit(store: Store) -> None:
    """The same where the driver sends a statement once for each of several rows."""
    many = text("SELECT pg_sleep(:seconds)")
    with unavailable(within=SHORT), store.write(limit=SHORT) as connection:
        connection.execute(many, [{"seconds": 20}, {"seconds": 20}])
    assert deliver(store).first_seen


def test_a_silent_lent_connection_ends_at_its_limit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on the fast path, and nobody tries a second time: a silent server says nothing then either."""
    monkeypatch.setattr("receiver.ledger.store.WAIT", SHORT)
    before = pid(store)
    with unavailable(within=SHORT), store.raw_connection() as pooled:
        driver: Any = pooled.driver_connection
        driver.execute("SELECT pg_sleep(20)")
    assert pid(store) != before


def test_a_connection_closes_itself_at_its_limit(store: Store) -> None:
    """Whoever holds it cannot use it again: the answer to come would be taken for another statement's."""
    url = store.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with LimitedConnection.connect(url) as connection:
        connection.limit = SHORT
        with pytest.raises(AnswerTimeout, match="silent"):
            connection.execute("SELECT pg_sleep(20)")
        assert connection.closed


def test_an_answer_that_flows_is_no_silence(store: Store) -> None:
    """A statement may take longer than its limit while its rows come."""
    rows = text("SELECT repeat('x', 100000), pg_sleep(:pause) FROM generate_series(1, 8)")
    with store.read(limit=4 * SHORT) as connection:
        begun = time.monotonic()
        assert len(connection.execute(rows, {"pause": SHORT}).all()) == 8
        assert time.monotonic() - begun > 4 * SHORT


def test_no_limit_is_no_limit(store: Store) -> None:
    """A migration may wait for as long as it takes, also after its connection had a limit."""
    with store.write(limit=SHORT) as connection:
        connection.execute(text("SELECT 1"))
    with store.write(limit=None) as connection:
        connection.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": 3 * SHORT})


@pytest.mark.usefixtures("impatient")
def test_a_server_that_accepts_and_says_nothing() -> None:
    """Connecting has the limit, too."""
    with RawServer(stay, reads=False) as server:
        mute = Store(f"postgresql+psycopg://me:x@127.0.0.1:{server.port}/none")
        with unavailable(within=LEAST):
            check_schema(mute)
        with unavailable(within=LEAST), mute.raw_connection():
            pytest.fail("it is connected")
        mute.close()


SLOW_INSERTS = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(1); RETURN NEW; END';
CREATE TRIGGER slow BEFORE INSERT ON event FOR EACH ROW EXECUTE FUNCTION slow()
"""

USES: dict[str, Callable[[Store], Any]] = {
    "record": lambda store: Recorder(store).record([delivery("evt_2")]),
    "claim": lambda store: claim_due(store, limit=1, lease=LEASE, worker="w"),
    "expire": expire,
    "nudges": lambda store: take_nudges(store, SWEEP),
    "starved": lambda store: starved(store, SWEEP),
    "schema": check_schema,
    "migrate": migrate,
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("use", USES)
def test_a_frozen_server_is_unavailable_within_one_wait(store: Store, freezable: Postgres, use: str) -> None:
    """The ping of a pooled connection and the attempt to replace it share one deadline."""
    deliver(store)
    with frozen(freezable), unavailable(within=LEAST):
        USES[use](store)
    USES[use](store)


@pytest.mark.usefixtures("impatient")
def test_threads_that_meet_at_a_frozen_server_wait_together(store: Store, freezable: Postgres) -> None:
    """Of eight threads on two connections, the last is told no later than the first two."""
    deliver(store)

    def ask(_: int) -> None:
        with unavailable(within=LEAST):
            check_schema(store)

    with frozen(freezable), ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    check_schema(store)


@pytest.mark.usefixtures("impatient")
def test_threads_that_connect_first_to_a_frozen_server_wait_together(
    store: Store, freezable: Postgres
) -> None:
    """The first connection of a store is made by one thread; the others do not wait for it one by one."""
    fresh = Store(store.url.render_as_string(hide_password=False), pool=4)

    def ask(_: int) -> None:
        with unavailable(within=LEAST):
            check_schema(fresh)

    with frozen(freezable), ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(4)))
    check_schema(fresh)
    fresh.close()


@pytest.mark.parametrize("moment", ["BEGIN", "INSERT", "commit"])
def test_a_server_that_freezes_midway(store: Store, freezable: Postgres, moment: str) -> None:
    """At whichever statement it freezes, the batch stands as a whole or not at all, and can come again."""
    deliver(store)
    with frozen_at(store, freezable, moment), unavailable(within=WAIT), store.write() as connection:
        connection.execute(text("INSERT INTO alert (kind, name, what, told) VALUES ('a', 'b', 'c', 0)"))
        connection.execute(text("INSERT INTO alert (kind, name, what, told) VALUES ('a', 'b', 'd', 0)"))
    with store.read() as connection:
        # The backend ends its transaction before another can see half of it.
        assert connection.execute(text("SELECT count(*) FROM alert")).scalar_one() in (0, 2)
    assert deliver(store, "new").first_seen


@contextmanager
def frozen_at(store: Store, server: Postgres, moment: str) -> Iterator[None]:
    """Freeze a server right before its next statement or commit inside the block."""

    def freeze_before(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if moment in statement or moment == "BEGIN":
            server.freeze()

    name = "commit" if moment == "commit" else "before_cursor_execute"
    hook: Callable[..., None] = (lambda _: server.freeze()) if moment == "commit" else freeze_before
    with hooked(store, name, hook):
        try:
            yield
        finally:
            server.thaw()


def test_a_settlement_whose_commit_was_not_answered_can_be_repeated(
    store: Store, freezable: Postgres
) -> None:
    """It stands once, whether the frozen server committed it in the end or not."""
    held = take(store, deliver(store).event)
    with frozen_at(store, freezable, "commit"), unavailable(within=WAIT):
        settle(store, [(held, Outcome(Move.FINISH))])
    settle(store, [(held, Outcome(Move.FINISH))])
    assert count(store, EVENT.c.state == "done") == 1
    with store.read() as connection:
        ended = connection.execute(text("SELECT outcome FROM attempt")).scalars().all()
        counted = connection.execute(text("SELECT sum(count) FROM counter WHERE kind = 'attempt'")).scalar()
    assert (ended, counted) == (["finish"], 1)


def test_a_delivery_that_stands_unanswered_is_a_duplicate_later(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row of a delivery that got 503 may be committed later; the next delivery finds it."""
    with store.write() as connection:
        connection.exec_driver_sql(SLOW_INSERTS)
    monkeypatch.setattr("receiver.ledger.store.WAIT", SHORT)
    with unavailable(within=SHORT):
        Recorder(store).record([delivery("evt_1")])
    wait_until(lambda: count(store) == 1, "the server to commit it, though nobody waits")
    monkeypatch.undo()
    (verdict,) = Recorder(store).record([delivery("evt_1")])
    assert not verdict.first_seen
    with store.read() as connection:
        counts = "SELECT what, sum(count) FROM counter WHERE minute = 'epoch' GROUP BY what"
        assert dict(tuple(row) for row in connection.execute(text(counts))) == {
            "first seen": 1,
            "duplicate": 1,
        }
