"""Where lines go: stderr, written for all threads that log at once by one of them."""

import logging
import os
import threading
from collections import deque
from collections.abc import Iterator
from typing import TextIO


class Stderr(logging.StreamHandler[TextIO]):
    """Writes lines together that come together: of threads that log at once, one writes for all.

    A write lets another thread run, and to come back costs more than the line.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lines: deque[str] = deque()
        self._writing = threading.Lock()
        os.register_at_fork(after_in_child=self._begin_anew)

    def _begin_anew(self) -> None:
        # Whoever was writing at the fork writes in the parent only.
        self._lines, self._writing = deque(), threading.Lock()

    def createLock(self) -> None:  # noqa: N802 - logging's own name
        """Have none: to queue up for it is what this avoids."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or leave it to who writes at this moment."""
        try:
            self._lines.append(f"{self.format(record)}\n")
            # Looked at again after each turn: a line may have come just before the lock was free.
            while self._lines and self._writing.acquire(blocking=False):
                try:
                    self.stream.write("".join(self._taken()))
                finally:
                    self._writing.release()
        except RecursionError:
            raise
        except Exception:  # noqa: BLE001 - as every handler of logging does
            self.handleError(record)

    def _taken(self) -> Iterator[str]:
        while self._lines:
            yield self._lines.popleft()
