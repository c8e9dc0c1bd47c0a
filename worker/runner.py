"""The runner: claims events, runs them on this process's threads, and renews, settles or releases the claims.

`run_nudged` serves Celery's threads, `run_unattended` the sweeper; both claim what has been due for longest,
and share the slots. `renew` is called for as long as the process lives, `release` when it stops. `settle_all`
writes down how attempts ended.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple
from uuid import UUID

from receiver.ledger.errors import LedgerError
from receiver.ledger.lease import Claim, Outcome
from receiver.ledger.queue import claim_due, renew, settle, unattended
from receiver.ledger.states import Move
from receiver.ledger.store import Store
from worker.spans import attempt_facts, attempt_span

log = logging.getLogger(__name__)

# Seconds that a woken thread goes on with what is due before it hears the broker again.
AWAKE = 5.0

# Events that a thread claims at once at most, and the seconds that each may take for that.
TOGETHER, QUICK = 32, 0.01

# Seconds that one of them may take before the rest are given back: other threads are there for them.
SLOW = 0.1

# The part of a lease that a claim may wait for its turn: it is renewed, but nobody else can have it.
WAIT_SHARE = 3

# Seconds after which finished events of a batch are settled, though others of it still run.
SETTLE_AFTER = 0.05

# Seconds between tries to settle while the ledger does not answer.
SETTLE_PAUSE = 0.5

# The same for renewals: after a third of the lease it might be over.
RENEW_PAUSE = 1.0

SHUT_DOWN = Outcome(Move.RELEASE, reason="Its worker shut down; the attempt does not count.")

NOT_BEGUN = Outcome(Move.RELEASE, reason="Its worker did not come to it; the attempt does not count.")


@dataclass(frozen=True)
class Limits:
    """How long claims live and how many run at once; `sweep` is the sweeper's pause."""

    lease: timedelta
    max_runtime: timedelta
    sweep: timedelta
    concurrency: int


@dataclass(eq=False)
class HeldClaim:
    """A claim of this process. `since` is the monotonic time from before it; `outcome` is set at the end."""

    claim: Claim
    since: float
    outcome: Outcome | None = None
    begun: bool = False
    given_back: bool = False


class BatchResult(NamedTuple):
    """How many events were claimed at once, and the seconds that their handlers took."""

    events: int
    seconds: float


class Runner:
    """Runs events on the slots that Celery's threads and the sweeper share."""

    def __init__(self, store: Store, attempt: Callable[[Claim], Outcome], limits: Limits) -> None:
        self.store = store
        self.limits = limits
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self.stopping = threading.Event()
        self._attempt = attempt
        self._longest_wait = limits.lease.total_seconds() / WAIT_SHARE
        self._held = dict[UUID, HeldClaim]()
        self._busy = self._drains = 0
        self._waking = False
        # When the last claim began that left nothing due.
        self._nothing_due_at = float("-inf")
        self._lock, self._claiming = threading.Lock(), threading.Lock()
        self._slots = threading.BoundedSemaphore(limits.concurrency)
        self._own = ThreadPoolExecutor(limits.concurrency, thread_name_prefix="firstseen-own")

    def run_nudged(self) -> int:
        """Run what is due until nothing is, or for AWAKE seconds; return how many events were run.

        Handlers that return quickly are taken up several at a time; slow ones one by one, so that other
        threads find the rest. Errors are logged here, since Celery would quote them.
        """
        size, total = 1, 0

        def take() -> list[Claim]:
            asked = time.monotonic()
            # One thread at a time: several that claim at once pay as much each, and get fewer events.
            with self._claiming:
                # Threads that were woken together need not all find out that nothing is left.
                if self.stopping.is_set() or self._nothing_due_at > asked:
                    return []
                begun = time.monotonic()
                taken = claim_due(self.store, limit=size, lease=self.limits.lease, worker=self.name)
                if len(taken) < size:
                    self._nothing_due_at = begun
            # The nudge may have been for another event than this one, and this handler may take long.
            if size == 1 and taken and taken[0].more_due:
                self._wake_another()
            return taken

        try:
            ends = time.monotonic() + AWAKE
            # Of a flood web nudges only a few events, so this thread looks for the rest by itself.
            while time.monotonic() < ends:
                ran = self._run(take)
                if not ran.events:
                    break
                total += ran.events
                size = min(size * 2, TOGETHER) if ran.seconds < QUICK * ran.events else 1
        except Exception:
            log.exception("An event could not be run; its lease will expire.")
        return total

    def begin(self) -> None:
        """Look for work on a thread of this process's own: nudges may have been lost while no worker ran."""
        self._own.submit(self.run_nudged)

    def _wake_another(self) -> None:
        """Let an idle thread of this process look for work too; it wakes the next one if it leaves some."""
        with self._lock:
            if self._waking or self.stopping.is_set() or self._busy >= self.limits.concurrency:
                return
            # One at a time, so that no crowd wakes for a few events.
            self._waking = True
        self._own.submit(self._woken)

    def _woken(self) -> None:
        self._waking = False
        self.run_nudged()

    def run_next(self) -> bool:
        """Claim and run the due event that has waited longest unattended; False when there is none."""

        def take() -> list[Claim]:
            which = unattended(self.store, self.limits.sweep)
            return claim_due(self.store, limit=1, where=which, lease=self.limits.lease, worker=self.name)

        return self._run(take).events > 0

    def run_unattended(self) -> int:
        """Set idle threads of this process to run what nobody fetches; return how many."""
        with self._lock:
            # A draining thread that runs an event is in both counts.
            idle = self.limits.concurrency - max(self._busy, self._drains)
            self._drains += idle
        for _ in range(idle):
            self._own.submit(self._drain)
        return idle

    @property
    def idle(self) -> bool:
        """Whether no thread of this process holds a claim or is about to."""
        with self._lock:
            return not self._busy

    def renew(self) -> int:
        """Renew the leases of claims younger than `max_runtime`; return how many still hold.

        Claims that wait for their turn behind a slow handler are given back instead, for other threads.
        """
        self._give_back()
        # An older one is let go: its lease runs out, and its handler's next call raises ClaimLost.
        oldest = time.monotonic() - self.limits.max_runtime.total_seconds()
        with self._lock:
            young = [held for held in self._held.values() if held.since > oldest]
        if not young:
            return 0
        lost = renew(self.store, [held.claim for held in young], lease=self.limits.lease)
        for held in young:
            if held.claim.event in lost:
                log.warning("Event %s was taken over: its lease had run out.", held.claim.event)
                self._forget(held)
        return len(young) - len(lost)

    def _give_back(self) -> None:
        with self._lock:
            before = time.monotonic() - self._longest_wait
            waiting = [held for held in self._held.values() if not held.begun and held.since < before]
            for held in waiting:
                held.given_back = True
        if waiting:
            settle(self.store, [(held.claim, NOT_BEGUN) for held in waiting])
            for held in waiting:
                self._forget(held)

    def release(self) -> int:
        """Give every held claim back, its attempt uncounted; return how many were still ours."""
        with self._lock:
            all_held = list(self._held.values())
        # One whose attempt has ended only waits to be settled with others of its batch.
        return len(settle(self.store, [(held.claim, held.outcome or SHUT_DOWN) for held in all_held]))

    def _drain(self) -> None:
        try:
            while self.run_next():
                pass
        except Exception:
            log.exception("An event could not be run; its lease will expire.")
        finally:
            with self._lock:
                self._drains -= 1

    def _run(self, take: Callable[[], list[Claim]]) -> BatchResult:
        """Take claims and run them to their settlement, in one of the slots."""
        batch: list[HeldClaim] = []
        with self._slots:
            # Busy from before the claim: a shutdown that saw nobody busy would leave it to expire.
            with self._lock:
                if self.stopping.is_set():
                    return BatchResult(0, 0.0)
                self._busy += 1
            # Counted from before the claim: the ledger's own clock starts later, never earlier.
            since = time.monotonic()
            try:
                try:
                    batch = [HeldClaim(taken, since) for taken in take()]
                except LedgerError as error:
                    log.warning("Nothing claimed: %s", error)
                with self._lock:
                    self._held.update({held.claim.event: held for held in batch})
                return BatchResult(len(batch), self._run_batch(batch, since))
            finally:
                for held in batch:
                    self._forget(held)
                with self._lock:
                    self._busy -= 1

    def _run_batch(self, batch: Sequence[HeldClaim], since: float) -> float:
        """Run a batch in order and settle it; return the seconds that its handlers took.

        Once one of them is slow or the process stops, the rest are released for other threads.
        """
        ended: list[tuple[Claim, Outcome]] = []
        settled, late, seconds = time.monotonic(), False, 0.0
        for held in batch:
            with self._lock:
                # It may have been lost meanwhile, and this process may even hold a later claim of the event.
                is_ours = self._held.get(held.claim.event) is held and not held.given_back
                held.begun = is_ours
            if is_ours:
                begun = time.monotonic()
                late = late or self.stopping.is_set() or begun - since > self._longest_wait
                if late and held is not batch[0]:
                    ended.append((held.claim, NOT_BEGUN))
                else:
                    with attempt_span(held.claim) as span:
                        held.outcome = self._attempt(held.claim)
                        span.set_attribute("firstseen.outcome", str(held.outcome.move))
                    ended.append((held.claim, held.outcome))
                took = time.monotonic() - begun
                seconds += took
                late = late or took > SLOW
            # Together they share a transaction, but a slow handler must not delay those before it for long.
            if held is batch[-1] or time.monotonic() - settled > SETTLE_AFTER:
                settle_all(self.store, ended, patience=self.limits.max_runtime)
                ended, settled = [], time.monotonic()
        return seconds

    def _forget(self, held: HeldClaim) -> None:
        with self._lock:
            # A later claim of the same event stays.
            if self._held.get(held.claim.event) is held:
                del self._held[held.claim.event]


def renew_for_ever(runner: Runner, pause: timedelta) -> None:
    """Renew this process's leases until it ends, also while it stops: running handlers need them."""
    seconds = pause.total_seconds()
    while True:
        time.sleep(seconds)
        seconds = min(RENEW_PAUSE, pause.total_seconds())
        try:
            runner.renew()
        except LedgerError as error:
            log.warning("No lease renewed: %s", error)
        except Exception:
            log.exception("A renewal failed; the next one follows.")
        else:
            seconds = pause.total_seconds()


def settle_all(store: Store, ended: Sequence[tuple[Claim, Outcome]], *, patience: timedelta) -> None:
    """Settle attempts together; while the ledger does not answer, try again for `patience`."""
    deadline = time.monotonic() + patience.total_seconds()
    while True:
        try:
            settled = settle(store, ended)
            break
        except LedgerError as error:
            # What the handlers did stands: to give up early would run them once more.
            if time.monotonic() <= deadline:
                time.sleep(SETTLE_PAUSE)
                continue
            _log_unsettled(ended, error)
            return
        except Exception as error:
            if len(ended) == 1:
                _log_unsettled(ended, error)
                return
            log.exception("Several events could not be settled together; they are settled one by one.")
            for attempt in ended:
                settle_all(store, [attempt], patience=patience)
            return
    for held, outcome in ended:
        with attempt_facts(held):
            if held.event in settled:
                log.info("Event %s (%s %s): %s", held.event, held.source, held.type, outcome.move)
            else:
                log.warning("Event %s was taken over; this attempt settles nothing.", held.event)


def _log_unsettled(ended: Sequence[tuple[Claim, Outcome]], error: Exception) -> None:
    for held, _ in ended:
        with attempt_facts(held):
            log.error("Event %s ran but could not be settled; it will run again.", held.event, exc_info=error)
