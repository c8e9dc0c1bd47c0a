"""Slows down guessing: so many tries for each name and address in a span of time, in bounded memory."""

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping

SPAN = 300.0
"""Seconds in which tries count."""

ROOM = 10_000
"""Names and addresses remembered; the one tried longest ago goes first."""


class Throttle:
    """Counts tries by key. Keys are any text; `clock` is in seconds."""

    def __init__(
        self, span: float = SPAN, room: int = ROOM, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._span, self._room, self._clock = span, room, clock
        self._tries: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, most: Mapping[str, int]) -> int:
        """Count a try for each key, of which `most` allows so many; 0, or the seconds until one is allowed.

        A try counts before its outcome is known, so that tries at once are no way around. One that is not
        allowed counts nowhere: knocking does not lock anybody out for longer.
        """
        with self._lock:
            now = self._clock()
            waits = [self._wait(key, allowed, now) for key, allowed in most.items()]
            if any(waits):
                return max(waits)
            for key in most:
                self._tries.setdefault(key, deque()).append(now)
                self._tries.move_to_end(key)
            while len(self._tries) > self._room:
                self._tries.popitem(last=False)
            return 0

    def give_back(self, keys: Iterable[str]) -> None:
        """Take a try of each key back: it was right."""
        with self._lock:
            for key in keys:
                if tries := self._tries.get(key):
                    tries.pop()

    def _wait(self, key: str, allowed: int, now: float) -> int:
        tries = self._tries.get(key)
        while tries and tries[0] <= now - self._span:
            tries.popleft()
        if not tries or len(tries) < allowed:
            return 0
        return math.ceil(tries[0] + self._span - now)
