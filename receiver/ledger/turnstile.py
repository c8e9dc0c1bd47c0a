"""A queue for threads before something scarce: who came first goes first."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from receiver.ledger.errors import LedgerUnavailable


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
