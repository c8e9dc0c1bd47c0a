"""The worker process, wired: settings, ledger, handlers, Celery's consumer, sweeper, notifier, orderly stop.

`Worker.start` runs until a signal; then `Shutdown` ends the process in bounded time: nothing new is claimed,
running handlers have GRACE to return, and what is still held is released, or left to expire.
"""

import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from types import FrameType
from typing import Any

from celery import Celery
from celery.exceptions import SecurityWarning
from celery.signals import setup_logging
from celery.worker import state as celery_state

from config.apis import Api
from config.broker import WAKE_TASK, consumer_options, publisher_options, wake_message
from config.settings import Settings
from config.tracing import flush
from receiver.ledger.errors import LedgerError
from receiver.ledger.queue import Retention, forget_worker
from receiver.ledger.schema import check_schema
from receiver.ledger.store import Store
from worker import notifier, sweeper
from worker.attempt import AttemptPolicy, attempt
from worker.calls.client import Calls
from worker.calls.perform import CallContext
from worker.registry import Registry
from worker.runner import Limits, Runner, renew_for_ever

log = logging.getLogger(__name__)

# Seconds until a broker that refused this worker is asked again.
BROKER_PAUSE = 30.0

# Seconds between looks at a ledger that is not there yet, or not migrated.
LEDGER_PAUSE = 2.0

# Seconds for running handlers after SIGTERM; platforms kill at 30, and releasing takes a moment.
GRACE = 20.0

# Seconds that Celery gets to close by itself once no handler runs; a frozen broker can hold it for ever.
CELERY_GRACE = 3.0

# Seconds for giving claims back; a ledger that does not answer lets them expire.
RELEASE_GRACE = 3.0

# Seconds for sending the last spans, where there are any.
TRACES_GRACE = 1.0

# Seconds between looks at whether handlers still run.
PAUSE = 0.05


class Worker:
    """One worker process, wired and ready to start."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        windows: Mapping[str, Retention],
        apis: Mapping[str, Api],
    ) -> None:
        self.settings = settings
        self.store = Store(settings.database, pool=settings.db_pool)
        policy = AttemptPolicy(settings.attempts, settings.backoff_max)
        limits = Limits(settings.lease, settings.max_runtime, settings.sweep, settings.worker_concurrency)
        make_calls = partial(Calls, CallContext.of(settings, self.store, apis))
        self.runner = Runner(self.store, lambda held: attempt(held, registry, policy, make_calls), limits)
        # Celery's current app is the consumer's, so this one must not be.
        self.publisher = Celery(
            "firstseen-nudges", **publisher_options(settings.broker), set_as_current=False
        )
        self.sweeper = sweeper.Sweeper(self.store, settings.sweep, self.nudge, self.runner)
        self.pruner = sweeper.Pruner(self.store, windows)
        self.reopener = sweeper.Reopener(self.store, registry)
        url = settings.alert_url.get_secret_value()
        self.notifier = (
            notifier.Notifier(self.store, notifier.SlackWebhook(url), settings.alert_backlog) if url else None
        )
        self.shutdown = Shutdown(self.runner)

    def start(self) -> int:
        """Run until a signal says to stop and return the exit status."""

        def stop(_signal: int, _frame: FrameType | None) -> None:
            celery_state.should_stop = 0  # type: ignore[assignment]  # an exit code, once set
            self.shutdown.begin()

        # First of all, so that no signal meets Python's own handlers.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        if not self._wait_for_ledger():
            return 0
        pause, stopping = self.settings.sweep, self.runner.stopping
        _in_background(renew_for_ever, self.runner, self.settings.lease / 3)
        _in_background(sweeper.run, self.sweeper, self.pruner, self.reopener, pause, stopping)
        self.runner.begin()
        if self.notifier:
            _in_background(notifier.run, self.notifier, pause, stopping)
        return self._consume()

    def nudge(self) -> bool:
        """Publish one nudge, in bounded time; False when the broker does not take it."""
        try:
            self.publisher.send_task(**wake_message())
        except Exception as error:  # noqa: BLE001 - clients raise whatever they like; the sweep goes on
            log.warning("The broker takes no nudges: %s", type(error).__name__)
            return False
        return True

    def _consume(self) -> int:
        """Serve nudges until the worker stops. A broker that refuses this worker for good is asked again."""
        # While anything takes part in Celery's signal about logging, Celery configures none.
        setup_logging.connect(lambda **_: None, weak=False)
        # Celery warns root of pickled messages; only JSON is accepted here.
        warnings.simplefilter("ignore", SecurityWarning)
        app = Celery("firstseen", **consumer_options(self.settings.broker))

        @app.task(name=WAKE_TASK)
        def wake(*_event: str) -> None:
            # A message of an older release names an event: whichever is due longest comes first all the same.
            self.runner.run_nudged()

        class Consumer(app.Worker):  # type: ignore[name-defined,misc]  # made by Celery at run time
            def install_platform_tweaks(self, worker: Any) -> None:
                """Leave the signals as they are: from its first moment this process stops in one way."""

        while not self.runner.stopping.is_set():
            # Workers need not hear of each other: what they share is in the ledger.
            consumer = Consumer(
                quiet=True,
                pool_cls="threads",
                concurrency=self.settings.worker_concurrency,
                without_mingle=True,
                without_gossip=True,
                without_heartbeat=True,
            )
            consumer.start()
            if not consumer.exitcode:
                break
            # It was refused for good, by a password perhaps. The sweeper runs every event meanwhile.
            log.error("The broker refuses this worker; it is asked again in %d s.", BROKER_PAUSE)
            self.runner.stopping.wait(BROKER_PAUSE)
        return self.shutdown.finish()

    def _wait_for_ledger(self) -> bool:
        while not self.runner.stopping.is_set():
            try:
                check_schema(self.store)
            except LedgerError as error:
                log.warning("Waiting for the ledger: %s", error)
                self.runner.stopping.wait(LEDGER_PAUSE)
            else:
                return True
        return False


def _in_background(target: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=target, args=arguments, daemon=True, name=target.__name__).start()


class Shutdown:
    """Waits for handlers, releases what is left, and ends the process: Celery's threads pool never would."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._celery_ended = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Start to stop; a second call is a no-op. A signal handler calls this, so it takes no lock."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._end, daemon=True, name="shutdown")
            self._thread.start()

    def finish(self) -> int:
        """Note that Celery has ended and wait for the rest; return the exit status."""
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
        # On a thread of its own, so that a ledger that does not answer cannot hold the process.
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
