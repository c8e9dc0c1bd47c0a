"""The sweeper: in every worker, any number at once, made safe by the database. It finds what was forgotten.

Each job has a `run_once` that makes one pass and returns its counts: `Sweeper` (expired leases, nudges, what
nobody fetches, bulk operations), `Pruner` (payloads and ids past their windows) and `Reopener` (ignored
events that have a handler now). Only `run` knows time.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from random import Random

from config.logs import about
from receiver.ledger import queue
from receiver.ledger.control import step_bulk, unfinished_bulk
from receiver.ledger.counters import count_sweep
from receiver.ledger.errors import LedgerError
from receiver.ledger.idempotency_keys import prune_keys
from receiver.ledger.store import Store
from worker.registry import Registry
from worker.runner import Runner

log = logging.getLogger(__name__)

# Sweeps between two prunings and two reopenings: five minutes and one, at the default pace.
PRUNE_EVERY, REOPEN_EVERY = 60, 12

# Of one pass, for each of this worker's threads, and at least: all are awake then, with some in reserve.
NUDGES_A_THREAD, NUDGES_A_PASS = 4, 128

# Events of a bulk operation in one transaction: short enough to let deliveries through on SQLite.
REPLAY_BATCH = 100

# Batches of each bulk operation in one pass, and operations that take turns: a pass must come to its end.
REPLAY_ROUNDS, REPLAYS_AT_ONCE = 10, 5


@dataclass(frozen=True)
class Swept:
    """What one pass did."""

    expired: int = 0
    nudged: int = 0
    set_to_work: int = 0
    replayed: int = 0


class Sweeper:
    """Takes expired leases back, nudges what is due, runs what nobody fetches, continues bulk operations."""

    def __init__(self, store: Store, sweep: timedelta, nudge: Callable[[], bool], runner: Runner) -> None:
        self._store, self._sweep, self._nudge, self._runner = store, sweep, nudge, runner

    def run_once(self) -> Swept:
        """Make one pass and return its counts. Raises LedgerError when the ledger does not answer."""
        # The heartbeat, by which people see which workers live.
        queue.record_heartbeat(self._store, self._runner.name)
        expired = queue.expire(self._store)
        nudged = failed = 0
        most = max(NUDGES_A_PASS, NUDGES_A_THREAD * self._runner.limits.concurrency)
        for _ in queue.take_nudges(self._store, self._sweep, limit=most):
            if not self._nudge():
                # The remaining ones stay marked as nudged, and are nudged again later like lost ones.
                failed = 1
                break
            nudged += 1
        # Events must run even with a dead broker, or with consumers that get no nudges.
        idle = self._runner.run_unattended() if queue.starved(self._store, self._sweep) else 0
        swept = Swept(expired, nudged, idle, continue_bulk_operations(self._store))
        count_sweep(self._store, {**asdict(swept), "nudges_failed": failed})
        return swept


def continue_bulk_operations(store: Store) -> int:
    """Do open steps of unfinished bulk operations, in turn; return how many events were acted on or skipped.

    Any number of processes may: the database gives each step to one of them, and one that dies gives it back.
    """
    total = 0
    for _ in range(REPLAY_ROUNDS):
        stepped = [
            step_bulk(store, replay, batch=REPLAY_BATCH)
            for replay in unfinished_bulk(store, limit=REPLAYS_AT_ONCE)
        ]
        moved = sum(batch.done + batch.skipped for batch in stepped)
        if not moved:
            break
        total += moved
    return total


class Pruner:
    """Erases payloads, and forgets ids and idempotency keys past their windows."""

    def __init__(self, store: Store, windows: Mapping[str, queue.Retention]) -> None:
        self._store, self._windows = store, windows

    def run_once(self) -> dict[str, int]:
        """Prune each kind and return counts."""
        pruned = {**queue.prune(self._store, self._windows), "keys": prune_keys(self._store)}
        count_sweep(self._store, {f"pruned_{kind}": count for kind, count in pruned.items()})
        return pruned


class Reopener:
    """Reopens ignored events that have a handler here.

    Not at the start alone: while releases overlap, an older worker may ignore them once more.
    """

    def __init__(self, store: Store, registry: Registry) -> None:
        self._store, self._registry = store, registry

    def run_once(self) -> int:
        """Reopen what was ignored in the last 24 hours and return how many."""
        total = 0
        for source, event_type in queue.ignored_types(self._store):
            if self._registry.find(source, event_type):
                count = queue.reopen(self._store, source, event_type)
                log.info("Reopened %d ignored events: %s %s has a handler now.", count, source, event_type)
                total += count
        count_sweep(self._store, {"reopened": total})
        return total


def run(
    sweeper: Sweeper, pruner: Pruner, reopener: Reopener, pause: timedelta, stopping: threading.Event
) -> None:
    """Sweep until the worker stops, prune and reopen now and then; after an error the next pass follows."""
    rng, passes = Random(), 0
    # The first pass does most work, and is over before the broker sends anything.
    while not stopping.is_set():
        try:
            if passes % REOPEN_EVERY == 0:
                reopener.run_once()
            swept = asdict(sweeper.run_once())
            if any(swept.values()):
                with about(**swept):
                    log.info("Swept.")
            if passes % PRUNE_EVERY == 0:
                pruner.run_once()
        except LedgerError as error:
            log.warning("No sweep: %s", error)
        except Exception:
            log.exception("A sweep failed; the next one follows.")
        passes += 1
        # Jittered, so that workers that started together do not sweep together.
        stopping.wait(pause.total_seconds() * rng.uniform(0.8, 1.2))
