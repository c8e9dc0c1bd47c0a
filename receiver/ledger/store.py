"""The ledger's database: connections, transactions and the clock, on PostgreSQL and SQLite alike."""

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.pool import PoolProxiedConnection, StaticPool
from sqlmodel import UTCDateTime

from receiver.ledger.errors import CommitUncertain, LedgerUnavailable
from receiver.ledger.pool import FifoSemaphore, acquiring, lent, limit_waits, ping_first

log = logging.getLogger(__name__)

# Seconds to get a connection, and then seconds that its server may be silent after each statement. Each is
# less than the gateway's patience, so that what it answers 503 is rarely recorded afterwards.
WAIT = 4.0

# The part of it that a turn or a lock may take: the server's own "no" must come first, for it costs no
# connection, and a thread whose turn comes late must not take a busy server for a silent one.
SHARE = 0.75

# Seconds of silence where a statement may have many rows to look at or to change: platforms' routers wait for
# an answer as long. On a server that was frozen before, BEGIN has failed after WAIT.
LONG = 30.0

# Seconds and probes: a server that vanished from the network is given up after 20 s, not after hours.
KEEPALIVE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 2}

# Milliseconds that sent bytes may stay unacknowledged by its machine: the same, in mid-statement.
UNACKED = 10_000

# Values of synchronous_commit under which a commit has reached this server's own disk.
DURABLE = frozenset({"on", "remote_apply", "remote_write", "local"})

# PostgreSQL's own time, for statements that are built once; `Store.moment()` has its parameter.
MOMENT = sa.select(
    sa.func.clock_timestamp(type_=UTCDateTime()) + sa.bindparam("shift", type_=sa.Interval())
).scalar_subquery()

# Seconds.
LOCK_WAIT = WAIT * SHARE

# Under a stricter default of the database, transactions that meet at one row would fail.
_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
_LOCAL = f"SET LOCAL lock_timeout = {LOCK_WAIT * 1000:.0f}"
_UNAVAILABLE = (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError, sa.exc.InternalError)
_Statement = TypeVar("_Statement")


class Store:
    """One process's door to the ledger. Threads share it; forks must not.

    `shift` moves the ledger's clock, for tests.
    """

    def __init__(self, url: str, *, pool: int = 5, shift: timedelta = timedelta(0)) -> None:
        self.url = make_url(url)
        self.sqlite = self.url.get_backend_name() == "sqlite"
        self.shift = shift
        self.engine = self._sqlite_engine(pool) if self.sqlite else self._postgres_engine(pool)
        self._built: dict[Any, Any] = {}
        self._pool = FifoSemaphore(pool)
        # SQLite's own busy handler polls and is unfair; this process's threads queue up before it.
        self._writer: FifoSemaphore | None = FifoSemaphore(1) if self.sqlite else None

    def now(self) -> sa.ColumnElement[datetime]:
        """Return the ledger's time: the database's own clock on PostgreSQL, the host's UTC on SQLite."""
        return self.after(timedelta(0))

    def after(self, span: timedelta) -> sa.ColumnElement[datetime]:
        """Return the ledger's time plus a span, as one expression."""
        if self.sqlite:
            return sa.literal(datetime.now(UTC) + self.shift + span, UTCDateTime())
        clock: sa.ColumnElement[datetime] = sa.func.clock_timestamp(type_=UTCDateTime())
        moved = self.shift + span
        # As a subquery it is asked once a statement, and an index can be searched for it: it is volatile.
        return sa.select(clock + sa.literal(moved) if moved else clock).scalar_subquery()

    @property
    def clock(self) -> sa.ColumnElement[datetime]:
        """The ledger's time in a statement that is built once; `moment()` has its parameters."""
        return sa.bindparam("now", type_=UTCDateTime()) if self.sqlite else MOMENT

    def moment(self) -> dict[str, Any]:
        """Return the parameters of statements that are built once and hold the time as MOMENT or `:now`."""
        return {"now": datetime.now(UTC) + self.shift} if self.sqlite else {"shift": self.shift}

    def built(self, build: Callable[["Store"], _Statement]) -> _Statement:
        """Return a statement that is built at its first use: to build one costs as much as to run it."""
        if build not in self._built:
            self._built[build] = build(self)
        found: _Statement = self._built[build]
        return found

    @contextmanager
    def read(self, limit: float | None = LONG) -> Iterator[sa.Connection]:
        """Open a transaction that only reads; the database may be silent for `limit` seconds at a time.

        Raises LedgerUnavailable when there is no connection within WAIT, or no answer within the limit.
        """
        with self._transaction(writes=False, limit=limit) as connection:
            yield connection

    @contextmanager
    def write(self, limit: float | None = WAIT, options: str = "") -> Iterator[sa.Connection]:
        """Open a transaction whose commit is on disk when the block ends; `limit` is as in `read`.

        `options` are further `SET LOCAL ...` for PostgreSQL, sent with its BEGIN.

        Raises LedgerUnavailable when the database does not answer. Then nothing was recorded; or, if the
        connection died or the limit passed at the commit itself, only a second try shows whether it was.
        """
        with self._transaction(writes=True, limit=limit, options=options) as connection:
            yield connection

    @contextmanager
    def raw_connection(self) -> Iterator[PoolProxiedConnection]:
        """Lend a pooled connection of the driver's own, for one transaction that is sent as it is.

        Raises LedgerUnavailable as `write` does, but any other error, and one of a connection that broke, as
        the driver does: then it is not known whether that transaction stands.
        """
        with self._turn(writes=True) as until, lent(self.engine, until, WAIT) as connection:
            yield connection

    def joined(self, connection: sa.Connection) -> "Store":
        """Return this store inside a transaction under way: its reads and writes end with that one."""
        return _Joined(self, connection)

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()

    @contextmanager
    def _turn(self, *, writes: bool) -> Iterator[float]:
        """Wait for this thread's turn; return the monotonic time until which a connection is got."""
        begun = time.monotonic()
        alone = self._writer.turn(WAIT * SHARE) if writes and self._writer else nullcontext()
        with alone, self._pool.turn(max(0.0, begun + WAIT * SHARE - time.monotonic())):
            yield begun + WAIT

    def _begin(self, **how: Any) -> tuple[sa.Connection, sa.RootTransaction]:
        connection = self.engine.connect().execution_options(**how)
        try:
            try:
                return connection, connection.begin()
            except sa.exc.DBAPIError as error:
                if not error.connection_invalidated:
                    raise
                # It ended while it was idle. Nothing has been done, so another one does as well; a ping of
                # each connection before its use would cost a round trip a transaction.
                return connection, connection.begin()
        except BaseException:
            connection.close()
            raise

    @contextmanager
    def _transaction(
        self, *, writes: bool, limit: float | None, options: str = ""
    ) -> Iterator[sa.Connection]:
        ends = False
        try:
            with self._turn(writes=writes) as until:
                # BEGIN is in it: a server that is silent already is not waited for as long as a statement.
                with acquiring(until):
                    connection, begun = self._begin(writes=writes, options=options)
                with connection, begun:
                    if not self.sqlite:
                        driver: Any = connection.connection.driver_connection
                        driver.limit = limit
                    yield connection
                    ends = writes
        except (*_UNAVAILABLE, sa.exc.DatabaseError) as error:
            # Its subclasses are a caller's mistakes, the bare class is a broken file or protocol.
            if not isinstance(error, _UNAVAILABLE) and type(error) is not sa.exc.DatabaseError:
                raise
            log.warning("The ledger does not answer: %s", type(error.__cause__ or error).__name__)
            raise (CommitUncertain if ends else LedgerUnavailable) from error

    def _postgres_engine(self, pool: int) -> Engine:
        # PgBouncer in transaction mode: no prepared statements, no session state.
        arguments = {"prepare_threshold": None, "connect_timeout": int(WAIT)} | KEEPALIVE
        arguments["tcp_user_timeout"] = UNACKED
        engine = sa.create_engine(
            self.url,
            pool_size=pool,
            max_overflow=0,
            pool_timeout=WAIT,
            # So that BEGIN is ours: one message begins a transaction and sets its options.
            isolation_level="AUTOCOMMIT",
            connect_args=arguments,
        )
        sa.event.listen(engine, "connect", _note_settings)
        sa.event.listen(engine, "begin", _begin_postgres)
        limit_waits(engine)
        ping_first(engine)
        return engine

    def _sqlite_engine(self, pool: int) -> Engine:
        arguments = {"timeout": WAIT, "check_same_thread": False}
        if not self.url.database:
            # In memory, for tests of handlers: it is gone with its one connection.
            engine = sa.create_engine(self.url, poolclass=StaticPool, connect_args=arguments)
        else:
            Path(self.url.database.removeprefix("file:")).parent.mkdir(parents=True, exist_ok=True)
            engine = sa.create_engine(
                self.url, pool_size=pool, max_overflow=0, pool_timeout=WAIT, connect_args=arguments
            )
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine


class _Joined(Store):
    """A store whose every transaction is one that its caller began and ends."""

    def __init__(self, outer: Store, connection: sa.Connection) -> None:
        self.__dict__.update(outer.__dict__)
        self._outer = connection

    @contextmanager
    def _transaction(self, **_: Any) -> Iterator[sa.Connection]:
        yield self._outer

    def raw_connection(self) -> NoReturn:
        """Refuse: a transaction of its own would not end with the one under way."""
        raise TypeError("A joined store has no transaction of its own.")


def _note_settings(connection: Any, record: Any) -> None:
    # Asked once a connection: a role or database may have switched durable commits off.
    with connection.cursor() as cursor:
        cursor.execute("SHOW synchronous_commit")
        found = cursor.fetchone()[0]
        record.info["commit"] = found if found in DURABLE else "on"
        cursor.execute("SHOW default_transaction_isolation")
        record.info["strict"] = cursor.fetchone()[0] not in ("read committed", "read uncommitted")
    connection.rollback()


def _begin_postgres(connection: sa.Connection) -> None:
    # PgBouncer in transaction mode keeps no options between transactions.
    commit = f"SET LOCAL synchronous_commit = {connection.info['commit']}"
    how = connection.get_execution_options()
    options = f"; {_LOCAL}; {commit}; {how.get('options', '')}" if how.get("writes") else ""
    connection.exec_driver_sql(f"{_BEGIN}{options}")


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    # A deferred transaction that reads and then writes fails at once under load, busy timeout or not.
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
