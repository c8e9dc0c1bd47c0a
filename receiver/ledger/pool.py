"""Pooled connections: FIFO turns, pings of idle connections, and the driver's own connections on loan."""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event, exc
from sqlalchemy.engine import Engine
from sqlalchemy.pool import PoolProxiedConnection

from receiver.ledger.errors import LedgerUnavailable

log = logging.getLogger(__name__)

# Seconds of rest after which a lent connection is pinged first: each time would be a round trip more.
REST = 1.0

_lending = threading.local()


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
        if rested and getattr(_lending, "now", False):
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
def lent(engine: Engine) -> Iterator[PoolProxiedConnection]:
    """Lend a connection, in the driver's autocommit mode as all are: its user begins and ends transactions.

    Raises LedgerUnavailable when there is no connection, or none in time; the driver's own error for anything
    else that fails. A connection that broke is thrown away.
    """
    driver: Any = engine.dialect.loaded_dbapi
    _lending.now = True
    try:
        pooled = engine.raw_connection()
    except (exc.TimeoutError, exc.DBAPIError, driver.Error) as error:
        log.warning("The ledger does not answer: %s", type(error).__name__)
        raise LedgerUnavailable from error
    finally:
        _lending.now = False
    connection: Any = pooled.driver_connection
    try:
        yield pooled
    except (driver.OperationalError, driver.InterfaceError, driver.InternalError) as error:
        if engine.dialect.is_disconnect(error, connection, None):
            pooled.invalidate(error)
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
