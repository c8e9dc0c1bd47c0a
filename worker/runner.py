"""The claims that this process holds: runs them on its threads, renews their leases, lets them go."""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

from receiver.ledger.errors import LedgerError
from receiver.ledger.lease import Claim, Outcome
from receiver.ledger.queue import claim, claim_due, renew, settle, unattended
from receiver.ledger.states import Move
from receiver.ledger.store import Store
from worker.instrumentation import concerning, watched

# Writing down how attempts ended: together where that is possible, and for as long as it takes.


SETTLE_PAUSE = 0.5
"""Seconds between tries to settle while the ledger does not answer."""


def settle_all(store: Store, ended: Sequence[tuple[Claim, Outcome]], *, patience: timedelta) -> None:
    """Settle attempts; while the ledger does not answer, try for `patience`: nobody else can claim them."""
    deadline = time.monotonic() + patience.total_seconds()
    while True:
        try:
            settled = settle(store, ended)
            break
        except Exception as error:
            if isinstance(error, LedgerError) and time.monotonic() <= deadline:
                time.sleep(SETTLE_PAUSE)
                continue
            if not isinstance(error, LedgerError) and len(ended) > 1:
                log.exception("Several events could not be settled together; they are settled one by one.")
                for one in ended:
                    settle_all(store, [one], patience=patience)
                return
            for held, _ in ended:
                with concerning(held):
                    log.exception("Event %s ran but could not be settled; it will run again.", held.event)
            return
    for held, end in ended:
        with concerning(held):
            if held.event in settled:
                log.info("Event %s (%s %s): %s", held.event, held.source, held.type, end.move)
            else:
                log.warning("Event %s was taken over; this attempt settles nothing.", held.event)


log = logging.getLogger(__name__)

AWAKE = 5.0
"""Seconds that a woken thread goes on with what is due before it hears the broker again."""

TOGETHER, QUICK = 32, 0.01
"""Events that a thread claims at once at most, and the seconds that each may take for that."""

SLOW = 0.1
"""Seconds that one of them may take before the rest are given back: other threads are there for them."""

SETTLE_AFTER = 0.05
"""Seconds after which finished events of a batch are settled, though others of it still run."""

SHUT_DOWN = Outcome(Move.RELEASE, reason="Its worker shut down; the attempt does not count.")

NOT_BEGUN = Outcome(Move.RELEASE, reason="Its worker did not come to it; the attempt does not count.")


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
        self._ended: dict[UUID, Outcome] = {}
        self._busy = self._drains = 0
        self._lock, self._claiming = threading.Lock(), threading.Lock()
        self._times = threading.local()
        self._slots = threading.BoundedSemaphore(limits.concurrency)
        self._own = ThreadPoolExecutor(limits.concurrency, thread_name_prefix="firstseen-own")
        self.stopping = threading.Event()

    def run(self, event: UUID) -> bool:
        """Claim one event and run it to its settlement; False when it was not to be had."""
        return bool(self._run(lambda: self._take(claim(self.store, event, **self._terms))))

    def run_nudged(self, event: UUID) -> None:
        """Run the event of a nudge, then go on with what is due: a nudge says that there is work.

        Handlers that return quickly are taken up several at a time; slow ones one by one, so that other
        threads find the rest. What goes wrong is logged here, since Celery would quote it.
        """
        try:
            self.run(event)
            self._go_on()
        except Exception:
            log.exception("An event could not be run; its lease will expire.")

    def _go_on(self) -> None:
        ends, size = time.monotonic() + AWAKE, 1
        while time.monotonic() < ends:
            begun = self._handled_in
            ran = self._run(partial(self._claim_due, size))
            if not ran:
                return
            quick = self._handled_in - begun < QUICK * ran
            size = min(size * 2, TOGETHER) if quick else 1

    def run_next(self) -> bool:
        """Claim and run the due event that has waited longest unattended; False when there is none."""
        return bool(self._run(self._claim_next))

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
        # One that has ended may wait for its neighbours of the lot to be settled with them.
        ends = [self._ended.get(held.event, SHUT_DOWN) for held in claims]
        return len(settle(self.store, list(zip(claims, ends, strict=True))))

    @property
    def _terms(self) -> dict[str, Any]:
        return {"lease": self.limits.lease, "worker": self.name}

    def _take(self, held: Claim | None) -> list[Claim]:
        return [] if held is None else [held]

    def _claim_next(self) -> list[Claim]:
        where = unattended(self.store, self.limits.sweep)
        return claim_due(self.store, limit=1, where=where, **self._terms)

    def _claim_due(self, limit: int) -> list[Claim]:
        # One thread at a time: what several claim at once costs them the same, and gives each of them less.
        with self._claiming:
            if self.stopping.is_set():
                return []
            return claim_due(self.store, limit=limit, **self._terms)

    @property
    def _handled_in(self) -> float:
        """Seconds that this thread's handlers have taken so far."""
        return getattr(self._times, "handled", 0.0)

    def _drain(self) -> None:
        try:
            while self.run_next():
                pass
        except Exception:
            log.exception("An event could not be run; its lease will expire.")
        finally:
            with self._lock:
                self._drains -= 1

    def _run(self, take: Callable[[], list[Claim]]) -> int:
        with self._slots:
            # Busy from before the claim: a shutdown that saw nobody busy would leave it to expire.
            with self._lock:
                if self.stopping.is_set():
                    return 0
                self._busy += 1
            try:
                return self._claim_and_run(take)
            finally:
                with self._lock:
                    self._busy -= 1

    def _claim_and_run(self, take: Callable[[], list[Claim]]) -> int:
        # Counted from before the claim: the ledger's own clock starts later, never earlier.
        since = time.monotonic()
        try:
            claims = take()
        except LedgerError as error:
            log.warning("Nothing claimed: %s", error)
            return 0
        with self._lock:
            self._held.update({held.event: (held, since) for held in claims})
        try:
            self._run_all(claims, since)
        finally:
            for held in claims:
                self._forget(held)
        return len(claims)

    def _run_all(self, claims: Sequence[Claim], since: float) -> None:
        ended: list[tuple[Claim, Outcome]] = []
        settled, late = time.monotonic(), False
        for held in claims:
            if self._is_held(held):
                begun = time.monotonic()
                late = late or self.stopping.is_set() or begun - since > self._patience
                begins = held is claims[0] or not late
                ended.append((held, self._watched(held) if begins else NOT_BEGUN))
                late = late or time.monotonic() - begun > SLOW
            if held is claims[-1] or time.monotonic() - settled > SETTLE_AFTER:
                settle_all(self.store, ended, patience=self.limits.max_runtime)
                ended, settled = [], time.monotonic()

    def _watched(self, held: Claim) -> Outcome:
        begun = time.monotonic()
        with watched(held) as seen:
            end = self._attempt(held)
            seen.set_attribute("firstseen.outcome", str(end.move))
        self._times.handled = self._handled_in + time.monotonic() - begun
        with self._lock:
            if self._held.get(held.event, (None,))[0] is held:
                self._ended[held.event] = end
        return end

    @property
    def _patience(self) -> float:
        """Seconds that a claim may wait for its turn: it is renewed, but nobody else can have it."""
        return self.limits.lease.total_seconds() / 3

    def _is_held(self, held: Claim) -> bool:
        with self._lock:
            return self._held.get(held.event, (None,))[0] is held

    def _forget(self, held: Claim) -> None:
        with self._lock:
            # By now this process may hold a later claim of the same event.
            if self._held.get(held.event, (None,))[0] is held:
                del self._held[held.event]
                self._ended.pop(held.event, None)
