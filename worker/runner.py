"""The claims that this process holds: runs them on its threads, renews their leases, lets them go."""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from receiver.ledger import (
    Claim,
    LedgerError,
    Move,
    Outcome,
    Store,
    claim,
    claim_next,
    renew,
    settle,
    unattended,
)
from worker.observing import watched

log = logging.getLogger(__name__)

SETTLE_PAUSE = 0.5
"""Seconds between tries to settle while the ledger does not answer."""


@dataclass(frozen=True)
class Limits:
    """How long claims live and how many run at once; `sweep` is the sweeper's pause."""

    lease: timedelta
    max_runtime: timedelta
    sweep: timedelta
    concurrency: int


class Runner:
    """One worker process's hands. Celery's threads and the sweeper share its slots."""

    def __init__(self, store: Store, attempt: Callable[[Claim], Outcome], limits: Limits) -> None:
        self.store = store
        self.limits = limits
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._attempt = attempt
        self._held: dict[UUID, tuple[Claim, float]] = {}
        self._busy = self._drains = 0
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(limits.concurrency)
        self._own = ThreadPoolExecutor(limits.concurrency, thread_name_prefix="firstseen-own")
        self.stopping = threading.Event()

    def run(self, event: UUID) -> bool:
        """Claim one event and run it to its settlement; False when it was not to be had."""
        return self._run(lambda: claim(self.store, event, lease=self.limits.lease, worker=self.name))

    def run_nudged(self, event: UUID) -> None:
        """Run one event as `run` does; what goes wrong is logged here, since Celery would quote it."""
        try:
            self.run(event)
        except Exception:
            log.exception("An event could not be run; its lease will expire.")

    def run_next(self) -> bool:
        """Claim and run the due event that has waited longest unattended; False when there is none."""
        return self._run(self._claim_next)

    def run_unattended(self) -> int:
        """Put idle threads of this process to what nobody fetches; returns how many were set to work."""
        with self._lock:
            idle = self.limits.concurrency - max(self._busy, self._drains)
            self._drains += idle
        for _ in range(idle):
            self._own.submit(self._drain)
        return idle

    @property
    def idle(self) -> bool:
        """Say whether no thread of this process holds a claim or is about to."""
        with self._lock:
            return not self._busy

    def renew(self) -> int:
        """Renew the leases of claims younger than `max_runtime`; returns how many still hold."""
        oldest = time.monotonic() - self.limits.max_runtime.total_seconds()
        with self._lock:
            young = [held for held, since in self._held.values() if since > oldest]
        if not young:
            return 0
        lost = renew(self.store, young, lease=self.limits.lease)
        for held in young:
            if held.event in lost:
                log.warning("Event %s was taken over: its lease had run out.", held.event)
                self._forget(held)
        return len(young) - len(lost)

    def release(self) -> int:
        """Give every held claim back, its attempt uncounted; returns how many were still ours."""
        with self._lock:
            claims = [held for held, _ in self._held.values()]
        end = Outcome(Move.RELEASE, reason="Its worker shut down; the attempt does not count.")
        return sum(settle(self.store, held, end) for held in claims)

    def _claim_next(self) -> Claim | None:
        pick = unattended(self.store, self.limits.sweep)
        return claim_next(self.store, pick, lease=self.limits.lease, worker=self.name)

    def _drain(self) -> None:
        try:
            while self.run_next():
                pass
        except Exception:
            log.exception("An event could not be run; its lease will expire.")
        finally:
            with self._lock:
                self._drains -= 1

    def _run(self, take: Callable[[], Claim | None]) -> bool:
        with self._slots:
            # Busy from before the claim: a shutdown that saw nobody busy would leave it to expire.
            with self._lock:
                if self.stopping.is_set():
                    return False
                self._busy += 1
            try:
                return self._claim_and_run(take)
            finally:
                with self._lock:
                    self._busy -= 1

    def _claim_and_run(self, take: Callable[[], Claim | None]) -> bool:
        # Counted from before the claim: the ledger's own clock starts later, never earlier.
        since = time.monotonic()
        try:
            held = take()
        except LedgerError as error:
            log.warning("Nothing claimed: %s", error)
            return False
        if held is None:
            return False
        with self._lock:
            self._held[held.event] = (held, since)
        try:
            with watched(held) as seen:
                end = self._attempt(held)
                seen.note(outcome=str(end.move))
                self._settle(held, end)
        finally:
            self._forget(held)
        return True

    def _forget(self, held: Claim) -> None:
        with self._lock:
            # By now this process may hold a later claim of the same event.
            if self._held.get(held.event, (None,))[0] is held:
                del self._held[held.event]

    def _settle(self, held: Claim, end: Outcome) -> None:
        """Write the outcome down, trying for long: while the ledger is away, nobody else can claim it."""
        deadline = time.monotonic() + self.limits.max_runtime.total_seconds()
        while True:
            try:
                settled = settle(self.store, held, end)
            except LedgerError:
                if time.monotonic() > deadline:
                    log.exception("Event %s ran but could not be settled; it will run again.", held.event)
                    return
                time.sleep(SETTLE_PAUSE)
                continue
            except Exception:
                log.exception("Event %s ran but could not be settled; it will run again.", held.event)
                return
            if settled:
                log.info("Event %s (%s %s): %s", held.event, held.source, held.type, end.move)
            else:
                log.warning("Event %s was taken over; this attempt settles nothing.", held.event)
            return
