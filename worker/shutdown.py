"""How a worker ends: in order, in time, and without counting what it could not finish."""

import logging
import os
import threading
import time

from config.tracing import flush
from receiver.ledger.errors import LedgerError
from receiver.ledger.queue import forget_worker
from worker.runner import Runner

log = logging.getLogger(__name__)

GRACE = 20.0
"""Seconds for running handlers after SIGTERM; platforms kill at 30, and releasing takes a moment."""

CELERY_GRACE = 3.0
"""Seconds that Celery gets to close by itself once no handler runs; a frozen broker can hold it for ever."""

RELEASE_GRACE = 3.0
"""Seconds for giving claims back; a ledger that does not answer lets them expire."""

TRACES_GRACE = 1.0
"""Seconds for sending the last spans, where there are any."""

PAUSE = 0.05


class Shutdown:
    """Waits for handlers, releases what is left, and ends the process: Celery's threads pool never would."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._celery_ended = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Start to stop; once is enough. A signal handler calls this, so it takes no lock."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._end, daemon=True, name="shutdown")
            self._thread.start()

    def finish(self) -> int:
        """Say that Celery has ended and wait for the rest; return the exit status."""
        self._celery_ended.set()
        self.begin()
        if self._thread is not None:
            self._thread.join()
        return 0

    def _end(self) -> None:
        self._runner.stopping.set()
        log.info("Stopping: nothing new is claimed; running handlers have %d s.", GRACE)
        deadline = time.monotonic() + GRACE
        while not self._runner.idle and time.monotonic() < deadline:
            time.sleep(PAUSE)
        if self._runner.idle:
            self._celery_ended.wait(CELERY_GRACE)
        release = threading.Thread(target=self._release, daemon=True, name="release")
        release.start()
        release.join(RELEASE_GRACE)
        flush(TRACES_GRACE)
        logging.shutdown()
        # Threads cannot be stopped, and the interpreter would wait for them.
        os._exit(0)

    def _release(self) -> None:
        try:
            released = self._runner.release()
            forget_worker(self._runner.store, self._runner.name)
        except LedgerError as error:
            log.warning("Claims are left to expire: %s", error)
        else:
            if released:
                log.info("Released %d events; another worker runs them.", released)
