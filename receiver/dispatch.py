"""Nudges the broker after the commit: a wake-up with a row id, by task name. The ledger row is the outbox."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from uuid import UUID

from celery import Celery

from config.broker import publisher_options, wake_message
from receiver.background import Background

log = logging.getLogger(__name__)

ROOM = 10_000
"""Nudges that wait for a slow broker; what finds no room is nudged by the sweeper."""

AT_ONCE = 16
"""Nudges sent without a pause: each wakes a thread, and threads that are awake go on to what is due."""

PAUSE = 0.05
"""Seconds between nudges from then on: one for each event would cost more than recording it."""

OWED = 64
"""Events that wait for such a nudge, the newest ones: by then that many threads are awake."""


class Dispatcher:
    """Publishes nudges from one thread, in bounded time, and forgets those that fail.

    `count` is told of each: taken or failed, and how many nudges.
    """

    def __init__(self, broker: str, count: Callable[[str, int], None] | None = None) -> None:
        self._count = count or (lambda _result, _nudges: None)
        self._app = Celery("firstseen-web", **publisher_options(broker), set_as_current=False)
        self._background: Background[UUID] = Background("dispatch", self._publish, room=ROOM, batch=ROOM)
        self._pace = Pace(AT_ONCE, PAUSE)
        self.state = "untried"

    def nudge(self, events: Iterable[UUID]) -> None:
        """Queue wake-ups, one for each event unless many come at once; never waits, never fails."""
        for event in events:
            self._background.put(event)

    def _publish(self, events: Sequence[UUID]) -> None:
        owed = deque(events, maxlen=OWED)
        while owed:
            self._pace.wait()
            try:
                self._app.send_task(**wake_message(str(owed.popleft())))
            except Exception as error:  # noqa: BLE001 - clients raise whatever they like; one line tells of all
                self._count("failed", 1 + len(owed))
                self._note("unreachable", f"{type(error).__name__}; the sweeper takes over")
                return
            self._count("taken", 1)
            self._note("ok", "it takes nudges")

    def _note(self, state: str, story: str) -> None:
        # One line a change, not one a delivery: a broker can be down for hours.
        if state != self.state:
            log.log(logging.INFO if state == "ok" else logging.WARNING, "Broker %s: %s.", state, story)
        self.state = state


class Pace:
    """Lets the first few through at once, and one a pause when those are used up; rest fills them again."""

    def __init__(self, at_once: int, pause: float) -> None:
        self._ahead, self._pause = (at_once - 1) * pause, pause
        self._next = 0.0

    def wait(self) -> None:
        """Wait for one's turn; for one thread only."""
        now = time.monotonic()
        self._next = max(self._next, now - self._ahead)
        if self._next > now:
            time.sleep(self._next - now)
        self._next += self._pause
