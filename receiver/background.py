"""Work off the answer's path: a bounded queue and one thread; full means dropped, never waiting."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

Item = TypeVar("Item")


class Background(Generic[Item]):
    """Hands items, in batches, to `work` on a thread of its own. `work` may raise: its batch is dropped.

    It rests for `pause` seconds after each batch, so that the next one is larger and there are fewer.
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
            self._start()
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            return False
        return True

    def _start(self) -> None:
        # At the first item, not at import: a server that forks afterwards would lose the thread.
        with self._started:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True, name=self._name)
                self._thread.start()

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
