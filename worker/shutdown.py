"""How a worker ends: in order, in time, and without counting what it could not finish."""

import logging
import os
import threading
import time
from typing import Any

from celery.signals import worker_shutting_down

from receiver.ledger.errors import LedgerError
from worker.runner import Runner

log = logging.getLogger(__name__)

GRACE = 20.0
"""Seconds for running handlers after SIGTERM; platforms kill at 30, and releasing takes a moment."""

CELERY_GRACE = 3.0
"""Seconds that Celery gets to close by itself once no handler runs; a frozen broker can hold it for ever."""

PAUSE = 0.05


class Shutdown:
    """Waits for handlers, releases what is left, and ends the process: Celery's threads pool never would."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._over = threading.Event()

    def arm(self) -> None:
        """Start the clock as soon as Celery is told to stop."""
        worker_shutting_down.connect(self._begin, weak=False)
        if self._runner.stopping.is_set():
            self._begin()

    def finish(self) -> int:
        """Say that Celery has ended by itself; wait for what still runs and return the exit status."""
        self._runner.stopping.set()
        self._wait_until_idle(time.monotonic() + GRACE)
        self._over.set()
        self._release()
        return 0

    def _begin(self, **_: Any) -> None:
        self._runner.stopping.set()
        threading.Thread(target=self._end, daemon=True, name="shutdown").start()

    def _end(self) -> None:
        log.info("Stopping: nothing new is claimed; running handlers have %d s.", GRACE)
        self._wait_until_idle(time.monotonic() + GRACE)
        if self._runner.idle and self._over.wait(CELERY_GRACE):
            return
        self._release()
        logging.shutdown()
        # Threads cannot be stopped, and the interpreter would wait for them.
        os._exit(0)

    def _wait_until_idle(self, deadline: float) -> None:
        while not self._runner.idle and time.monotonic() < deadline:
            time.sleep(PAUSE)

    def _release(self) -> None:
        try:
            released = self._runner.release()
        except LedgerError as error:
            log.warning("Claims are left to expire: %s", error)
        else:
            if released:
                log.info("Released %d events; another worker runs them.", released)
