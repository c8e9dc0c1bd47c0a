"""Pooled connections: which are asked whether they still live, and how the driver's own is lent out."""

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

REST = 1.0
"""Seconds of rest after which a lent connection is asked first: each time would be a round trip more."""

_lending = threading.local()


def ask_first(engine: Engine) -> None:
    """Let connections be asked whether they live before they are used, lent ones only after a rest."""

    def made(_connection: Any, record: Any) -> None:
        record.info["new"] = True

    def used(_connection: Any, record: Any) -> None:
        record.info["used"] = time.monotonic()

    def ask(connection: Any, record: Any, _proxy: Any) -> None:
        if record.info.pop("new", False):
            return
        awake = time.monotonic() - record.info["used"] < REST
        if not (awake and getattr(_lending, "now", False)) and not _lives(engine, connection):
            # The pool takes another one, or makes it.
            raise exc.DisconnectionError

    event.listen(engine, "connect", made)
    event.listen(engine, "checkin", used)
    event.listen(engine, "checkout", ask)


def _lives(engine: Engine, connection: Any) -> bool:
    try:
        return engine.dialect.do_ping(connection)
    except engine.dialect.loaded_dbapi.Error:
        return False


@contextmanager
def lent(engine: Engine) -> Iterator[PoolProxiedConnection]:
    """Lend a connection in the driver's autocommit mode: whoever sends a transaction begins and ends it.

    Raises LedgerUnavailable when there is no connection, or none in time; the driver's own error for anything
    else that fails. A connection that broke is thrown away.
    """
    driver = engine.dialect.loaded_dbapi
    pooled = _take(engine)
    connection: Any = pooled.driver_connection
    try:
        if not _is_sqlite(engine):
            connection.autocommit = True
        yield pooled
    except (driver.OperationalError, driver.InterfaceError, driver.InternalError) as error:
        if engine.dialect.is_disconnect(error, connection, None):
            pooled.invalidate(error)
            raise
        log.warning("The ledger does not answer: %s", type(error).__name__)
        raise LedgerUnavailable from error
    finally:
        if pooled.is_valid:
            _give_back(engine, pooled)


def _take(engine: Engine) -> PoolProxiedConnection:
    _lending.now = True
    try:
        return engine.raw_connection()
    except (exc.TimeoutError, exc.DBAPIError, engine.dialect.loaded_dbapi.Error) as error:
        log.warning("The ledger does not answer: %s", type(error).__name__)
        raise LedgerUnavailable from error
    finally:
        _lending.now = False


def _give_back(engine: Engine, pooled: PoolProxiedConnection) -> None:
    connection: Any = pooled.driver_connection
    try:
        if not _is_sqlite(engine):
            # What failed half-way is undone first: the mode of a connection in a transaction cannot be set.
            connection.rollback()
            connection.autocommit = False
    except engine.dialect.loaded_dbapi.Error as error:
        pooled.invalidate(error)
    pooled.close()


def _is_sqlite(engine: Engine) -> bool:
    return engine.dialect.name == "sqlite"


# A queue for threads before something scarce: who came first goes first.


class FifoSemaphore:
    """Lets at most `width` threads in at once.

    Measured: SQLAlchemy's pool gives a freed connection to whoever asks next, and that is mostly the thread
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
            self._leave()

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
        # It was handed over just as the patience ended.
        return True

    def _leave(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._free += 1
