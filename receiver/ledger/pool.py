"""Pooled connections: FIFO turns, limits on waits, pings of idle connections, the driver's own on loan."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from sqlalchemy import event, exc
from sqlalchemy.engine import Engine
from sqlalchemy.pool import PoolProxiedConnection

from receiver.ledger.errors import CommitUncertain, LedgerUnavailable

log = logging.getLogger(__name__)

# Seconds of rest after which a lent connection is pinged first: each time would be a round trip more.
REST = 1.0

_Result = TypeVar("_Result")


class _Acquiring(threading.local):
    """What a thread's waits know while it gets a connection; at any other time nothing."""

    until: float | None = None
    """The monotonic time at which it gives up."""
    lends = False


_acquiring = _Acquiring()


class AnswerTimeout(psycopg.OperationalError):
    """The server was silent for too long; the connection is closed, and the statement may still be done."""

    def __str__(self) -> str:
        """Return the sentence above."""
        return type(self).__doc__ or ""


class LimitedConnection(psycopg.Connection[Any]):
    """A connection that closes itself when its server is silent for too long, and raises AnswerTimeout.

    A frozen server, or one whose disk hangs, still acknowledges what is sent: no TCP timeout ever notices.
    """

    limit: float | None = None
    """Seconds of silence, None for any. While a thread gets a connection, that deadline holds instead."""

    def wait(self, gen: PQGen[_Result], *arguments: Any, **named: Any) -> _Result:
        """Wait as psycopg does, within the limit. Every wait of a connection that stands passes here."""
        return super().wait(self._limited(gen), *arguments, **named)

    def _limited(self, gen: PQGen[_Result]) -> PQGen[_Result]:
        """Pass on what psycopg and its generator say to each other; a tenth of a second of silence is a 0."""
        until, limit, heard = _acquiring.until, self.limit, time.monotonic()
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                now = time.monotonic()
                if ready:
                    # Bytes flow: a large answer over a slow line is no silence.
                    heard = now
                elif now >= until if until is not None else limit is not None and now - heard >= limit:
                    # It must never be used again: the answer to this statement would be taken for another's.
                    self.pgconn.finish()
                    raise AnswerTimeout
                wanted = gen.send(ready)
        except StopIteration as end:
            result: _Result = end.value
            return result


def limit_waits(engine: Engine) -> None:
    """Let the engine's connections be LimitedConnections, made within the deadline of their thread."""

    def connect(
        _dialect: Any, _record: Any, arguments: Sequence[Any], named: Mapping[str, Any]
    ) -> LimitedConnection:
        timeout = named["connect_timeout"]
        if _acquiring.until is not None:
            left = _acquiring.until - time.monotonic()
            if left <= 0:
                raise AnswerTimeout
            # Psycopg's least is two seconds, and each address of a host has as many.
            timeout = min(timeout, math.ceil(left))
        return LimitedConnection.connect(*arguments, **{**named, "connect_timeout": timeout})

    event.listen(engine, "do_connect", connect)


@contextmanager
def acquiring(until: float, *, lends: bool = False) -> Iterator[None]:
    """Get a connection in this block: connecting, asking its settings and pings share the time until then."""
    _acquiring.until, _acquiring.lends = until, lends
    try:
        yield
    finally:
        _acquiring.until, _acquiring.lends = None, False


class FifoSemaphore:
    """FIFO semaphore: lets at most `width` threads in at once, in the order in which they came.

    Measured: SQLAlchemy's pool gives a freed connection to the next thread that asks, which is mostly the one
    that has just given it back; with 24 threads on three connections others waited until all load was over.
    """

    def __init__(self, width: int) -> None:
        self._free = width
        self._lock = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()

    @contextmanager
    def turn(self, patience: float) -> Iterator[None]:
        """Wait for a turn, at most this many seconds, and hold it; raises LedgerUnavailable."""
        if not self._enter(patience):
            raise LedgerUnavailable
        try:
            yield
        finally:
            with self._lock:
                if self._waiting:
                    self._waiting.popleft().release()
                else:
                    self._free += 1

    def _enter(self, patience: float) -> bool:
        with self._lock:
            if self._free:
                self._free -= 1
                return True
            mine = threading.Lock()
            mine.acquire()
            self._waiting.append(mine)
        if mine.acquire(timeout=patience):
            return True
        with self._lock:
            if mine in self._waiting:
                self._waiting.remove(mine)
                return False
        # The turn was handed over just as the patience ended.
        return True


def ping_first(engine: Engine) -> None:
    """Let connections that have rested be pinged before they are lent.

    Others begin with a BEGIN, which shows as well whether the connection lives.
    """

    def made(_connection: Any, record: Any) -> None:
        record.info["new"] = True

    def used(_connection: Any, record: Any) -> None:
        record.info["used"] = time.monotonic()

    def ping(connection: Any, record: Any, _proxy: Any) -> None:
        if record.info.pop("new", False):
            return
        rested = time.monotonic() - record.info["used"] >= REST
        if rested and _acquiring.lends:
            try:
                alive = engine.dialect.do_ping(connection)
            except engine.dialect.loaded_dbapi.Error:
                alive = False
            if not alive:
                # The pool takes another connection, or makes one.
                raise exc.DisconnectionError

    event.listen(engine, "connect", made)
    event.listen(engine, "checkin", used)
    event.listen(engine, "checkout", ping)


@contextmanager
def lent(engine: Engine, until: float, limit: float) -> Iterator[PoolProxiedConnection]:
    """Lend a connection, in the driver's autocommit mode as all are: its user begins and ends transactions.

    It is got until a monotonic time, and each of its statements has `limit` seconds. Raises LedgerUnavailable
    when there is no connection, or no answer, in time; the driver's own error for anything else that fails. A
    connection that broke is thrown away.
    """
    driver: Any = engine.dialect.loaded_dbapi
    try:
        with acquiring(until, lends=True):
            pooled = engine.raw_connection()
    except (exc.TimeoutError, exc.DBAPIError, driver.Error) as error:
        log.warning("The ledger does not answer: %s", type(error).__name__)
        raise LedgerUnavailable from error
    connection: Any = pooled.driver_connection
    try:
        if engine.dialect.name != "sqlite":
            connection.limit = limit
        yield pooled
    except (driver.OperationalError, driver.InterfaceError, driver.InternalError) as error:
        if engine.dialect.is_disconnect(error, connection, None):
            pooled.invalidate(error)
            if isinstance(error, AnswerTimeout):
                log.warning("The ledger does not answer: %s", type(error).__name__)
                raise CommitUncertain from error
            # Of a broken connection a second try shows what stands; a silent server would not say either.
            raise
        log.warning("The ledger does not answer: %s", type(error).__name__)
        raise LedgerUnavailable from error
    finally:
        if pooled.is_valid:
            try:
                # A transaction that failed half-way.
                connection.rollback()
            except driver.Error as error:
                pooled.invalidate(error)
            pooled.close()
