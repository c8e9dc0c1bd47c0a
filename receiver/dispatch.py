"""Nudges: after the commit the broker gets a wake-up that names no event. The row itself is the outbox.

A nudge may be lost, as the sweeper makes up for it. So a `Dispatcher` publishes from a thread of its own
(`Background`), in bounded time and at a bounded pace (`Pace`), and the request never waits for the broker.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

from celery import Celery

from config.broker import publisher_options, wake_message

log = logging.getLogger(__name__)

Item = TypeVar("Item")

# Nudges that wait for a slow broker; further ones are dropped and left to the sweeper.
ROOM = 10_000

# Nudges sent without a pause: each wakes a thread, and threads that are awake go on to what is due.
AT_ONCE = 16

# Seconds between nudges from then on: one for each event would cost more than recording it.
PAUSE = 0.05

# Nudges that wait for their turn: by then that many threads are awake.
BACKLOG = 64


class Dispatcher:
    """Publishes nudges from one thread, and forgets those that fail.

    `count` is called with a result, `taken` or `failed`, and a number of nudges. `state` is the broker's:
    `untried`, `ok` or `unreachable`.
    """

    def __init__(self, broker: str, count: Callable[[str, int], None] | None = None) -> None:
        self._count = count or (lambda _result, _nudges: None)
        self._app = Celery("firstseen-web", **publisher_options(broker), set_as_current=False)
        self._background: Background[int] = Background("dispatch", self._publish, room=ROOM, batch=ROOM)
        self._pace = Pace(AT_ONCE, PAUSE)
        self.state = "untried"

    def load(self) -> None:
        """Load the broker's client, which takes a tenth of a second at the first nudge otherwise."""
        with self._app.connection_for_write() as connection:
            # It makes the transport, and connects to nothing yet.
            _ = connection.transport

    def nudge(self, count: int) -> None:
        """Queue wake-ups for this many due events, fewer when many come at once; never waits, never fails."""
        if count:
            self._background.put(count)

    def _publish(self, counts: Sequence[int]) -> None:
        for left in range(min(sum(counts), BACKLOG), 0, -1):
            self._pace.wait()
            try:
                self._app.send_task(**wake_message())
            except Exception as error:  # noqa: BLE001 - clients raise whatever they like; one line for all
                self._count("failed", left)
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
        """Return when the next may go; for one thread only."""
        now = time.monotonic()
        # The next turn lies at most so far in the past that the first few need not wait.
        self._next = max(self._next, now - self._ahead)
        if self._next > now:
            time.sleep(self._next - now)
        self._next += self._pause


class Background(Generic[Item]):
    """A bounded queue whose items one thread hands to `work`, at most `batch` at a time.

    `work` may raise: its batch is dropped. After each batch the thread rests for `pause` seconds, so that the
    next one is larger and there are fewer.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Sequence[Item]], None],
        *,
        room: int,
        batch: int,
        pause: float = 0.0,
    ) -> None:
        self._name, self._work, self._batch, self._pause = name, work, batch, pause
        self._queue: queue.Queue[Item] = queue.Queue(room)
        self._started = threading.Lock()
        self._thread: threading.Thread | None = None

    def put(self, item: Item) -> bool:
        """Queue an item without waiting; False when there is no room."""
        if self._thread is None:
            # At the first item, not at import: a server that forks afterwards would lose the thread.
            with self._started:
                if self._thread is None:
                    thread = threading.Thread(target=self._run, daemon=True, name=self._name)
                    thread.start()
                    # Not before it runs: where no thread can be started, the next item tries again.
                    self._thread = thread
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            return False
        return True

    def flush(self) -> None:
        """Hand over what is queued now, in the caller's thread: the process ends."""
        batch = []
        with suppress(queue.Empty):
            while True:
                batch.append(self._queue.get_nowait())
        if batch:
            self._work(batch)

    def _run(self) -> None:
        while True:
            batch = [self._queue.get()]
            while len(batch) < self._batch and not self._queue.empty():
                batch.append(self._queue.get())
            try:
                self._work(batch)
            except Exception:
                log.exception("%s dropped %d items.", self._name, len(batch))
            if self._pause:
                time.sleep(self._pause)
