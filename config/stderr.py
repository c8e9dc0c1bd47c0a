"""Where lines go: stderr, written for all threads that log at once by one of them."""

import logging
import os
import threading
from collections import deque
from collections.abc import Iterator
from typing import TextIO

TURNS, MANY = 4, 1000
"""Times that one thread writes for the others, and lines that may wait; then each waits for its turn."""

PATIENCE = 1.0
"""Seconds that a process which ends waits for who writes."""


class Stderr(logging.StreamHandler[TextIO]):
    """Writes lines together that come together: of threads that log at once, one writes for all.

    A write lets another thread run, and to come back costs more than the line.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lines: deque[str] = deque()
        self._writing, self._crowded = threading.Lock(), False
        os.register_at_fork(after_in_child=self._begin_anew)

    def _begin_anew(self) -> None:
        # Whoever was writing at the fork writes in the parent only.
        self._lines, self._writing, self._crowded = deque(), threading.Lock(), False

    def createLock(self) -> None:  # noqa: N802 - logging's own name
        """Have none: to queue up for it is what this avoids."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Write a record that the filters let through; logging's own way asks for the lock."""
        passed: bool | logging.LogRecord = self.filter(record)
        if passed:
            self.emit(passed if isinstance(passed, logging.LogRecord) else record)
        return bool(passed)

    def flush(self) -> None:
        """Write what is left, as the process ends; a lock that its holder keeps is not waited for long."""
        if self._writing.acquire(timeout=PATIENCE):
            try:
                self.stream.write("".join(self._taken()))
                self.stream.flush()
            finally:
                self._writing.release()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or leave it to who writes at this moment."""
        try:
            self._lines.append(f"{self.format(record)}\n")
            self._write()
        except RecursionError:
            raise
        except Exception:  # noqa: BLE001 - as every handler of logging does
            self.handleError(record)

    def _write(self) -> None:
        # Looked at again after each turn: a line may have come just before the lock was free.
        turns = 0
        while self._lines and self._writing.acquire(blocking=self._crowded or len(self._lines) > MANY):
            try:
                self.stream.write("".join(self._taken()))
            finally:
                self._writing.release()
            turns += 1
            # The others wait for their turn now, or this thread would write for them as long as they log.
            self._crowded = turns >= TURNS
        if turns:
            self._crowded = False

    def _taken(self) -> Iterator[str]:
        while self._lines:
            yield self._lines.popleft()
