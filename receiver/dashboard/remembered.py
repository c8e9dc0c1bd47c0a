"""An answer that many ask for and that costs something: it is found anew only so often."""

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, TypeVar

Answer = TypeVar("Answer")

LEAST = 2.0
"""Seconds that an answer is good for at least."""

SHARE = 20
"""It is good for so many times as long as it took: asking may use a twentieth of one connection."""


class Remembered(Generic[Answer]):
    """Finds an answer once for everybody. `clock` is in seconds; what `find` raises is not remembered.

    `turn` is held while it looks: answers that share one are found one after another.
    """

    def __init__(
        self,
        find: Callable[[], Answer],
        clock: Callable[[], float] = time.monotonic,
        turn: AbstractContextManager[Any] | None = None,
    ) -> None:
        self._find, self._clock, self._turn = find, clock, turn or nullcontext()
        self._lock = threading.Lock()
        self._known: tuple[Answer, float] | None = None

    def get(self) -> Answer:
        """Return the answer; while another thread looks for a new one, the last one."""
        known = self._known
        if known and (self._clock() < known[1] or not self._lock.acquire(blocking=False)):
            return known[0]
        if not known:
            self._lock.acquire()
        try:
            return self._renewed()
        finally:
            self._lock.release()

    def _renewed(self) -> Answer:
        # Whoever waited for the first answer finds it here.
        if self._known and self._clock() < self._known[1]:
            return self._known[0]
        with self._turn:
            begun = self._clock()
            answer = self._find()
            ended = self._clock()
        self._known = answer, ended + max(LEAST, SHARE * (ended - begun))
        return answer
