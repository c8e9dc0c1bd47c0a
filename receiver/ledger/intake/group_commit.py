"""Group commit: requests of one process that meet are recorded in one transaction.

Web hands its deliveries to the `Recorder`, whose `DuplicateCache` answers storms of copies from memory.
"""

import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from receiver.ledger.counters import CounterKind, bump
from receiver.ledger.errors import LedgerError, LedgerUnavailable
from receiver.ledger.intake.delivery import Delivery, Key, Verdict
from receiver.ledger.intake.duplicates import RING, Repeated, note_duplicates
from receiver.ledger.intake.recording import record, record_first_seen, record_together
from receiver.ledger.store import Store
from receiver.ledger.text import clipped

log = logging.getLogger(__name__)

# Deliveries of one transaction, or one request: the first of a burst must not wait for its last.
BATCH_MAX = 500

# Bytes of a body up to which the fast path is tried: a duplicate goes to the database twice then.
SHORT = 64 * 1024

# Duplicates of a done event that the ledger itself counts: a sender that goes on after that is a storm.
STORM = 5

# Seconds after which the ledger is asked again: the event may have been rerun meanwhile.
MEMORY = 60.0

# Events remembered at once; the oldest make room.
ROOM = 10_000

# Seconds between two writes of counts: a killed process loses no more of them, and nothing else.
FLUSH = 1.0


@dataclass
class _Ticket:
    """One request's deliveries, and what became of them."""

    deliveries: Sequence[Delivery]
    leads: bool = False
    verdicts: Sequence[Verdict] = ()
    error: Exception | None = None
    _asleep: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._asleep.acquire()

    def sleep(self) -> None:
        """Wait for `wake`."""
        self._asleep.acquire()

    def wake(self) -> None:
        """Idempotent: a second wake is a no-op. Only the leader of the moment calls it."""
        if self._asleep.locked():
            self._asleep.release()


class Recorder:
    """Records deliveries; each caller returns once its own are committed, and gets its own errors alone.

    If no batch is being written, the caller writes its own at once; otherwise it joins the next batch, which
    the first of the waiting callers writes for all: the more load, the larger the batches.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._cache = store, DuplicateCache(store)
        self._lock = threading.Lock()
        self._waiting: list[_Ticket] = []
        self._busy = False

    def record(self, deliveries: Sequence[Delivery]) -> Sequence[Verdict]:
        """Record a request's deliveries and return their verdicts in order; raises as `record` does."""
        known = self._cache.answer(deliveries)
        if known is not None:
            return known
        ticket = _Ticket(deliveries)
        with self._lock:
            self._waiting.append(ticket)
            ticket.leads, self._busy = not self._busy, True
        if not ticket.leads:
            ticket.sleep()
        if ticket.leads:
            self._lead()
        if ticket.error is not None:
            raise ticket.error
        if len(ticket.verdicts) != len(deliveries):
            # The thread that wrote for it was ended from outside.
            raise LedgerUnavailable
        self._cache.learn(deliveries, ticket.verdicts)
        return ticket.verdicts

    def _lead(self) -> None:
        """Write the next batch, and hand the lead over to the first that waits."""
        batch = self._take()
        try:
            _record_batch(self._store, batch)
        finally:
            with self._lock:
                self._busy = bool(self._waiting)
                if self._waiting:
                    self._waiting[0].leads = True
                    self._waiting[0].wake()
            for ticket in batch:
                ticket.wake()

    def _take(self) -> list[_Ticket]:
        """Take the tickets that wait, oldest first: the leader's own, and those that a batch has room for."""
        with self._lock:
            room, count = BATCH_MAX, 0
            while count < len(self._waiting) and (room > 0 or not count):
                room -= len(self._waiting[count].deliveries)
                count += 1
            batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch


def _record_batch(store: Store, batch: Sequence[_Ticket]) -> None:
    """Record what is first-seen by the fast path, and what that leaves in one transaction."""
    # A request of several events stands as a whole or not at all, which the fast path cannot promise.
    fast = [ticket for ticket in batch if len(ticket.deliveries) == 1 and _is_fast(ticket.deliveries[0])]
    verdicts: Sequence[Verdict | None] = [None] * len(fast)
    try:
        verdicts = record_first_seen(store, [ticket.deliveries[0] for ticket in fast]) if fast else []
    except LedgerUnavailable as error:
        for ticket in fast:
            ticket.error = error
    except Exception:  # noqa: BLE001, S110 - the delivery at fault raises it again below
        pass
    for ticket, verdict in zip(fast, verdicts, strict=True):
        if verdict is not None:
            ticket.verdicts = [verdict]
            ticket.wake()
    rest = [ticket for ticket in batch if not ticket.verdicts and ticket.error is None]
    if len(rest) == 1 or not _record_rest(store, rest):
        # One request's fault is no other's.
        for ticket in rest:
            try:
                ticket.verdicts = record(store, ticket.deliveries)
            except Exception as error:  # noqa: BLE001 - its caller raises it
                ticket.error = error


def _is_fast(delivery: Delivery) -> bool:
    return delivery.is_plain and len(delivery.body) <= SHORT


def _record_rest(store: Store, rest: Sequence[_Ticket]) -> bool:
    """Record several requests in one transaction; False when the database refuses it for one of them."""
    try:
        verdicts = iter(record_together(store, [item for ticket in rest for item in ticket.deliveries]))
    except LedgerUnavailable as error:
        for ticket in rest:
            ticket.error = error
    except Exception:  # noqa: BLE001 - the delivery at fault raises it again
        return False
    else:
        for ticket in rest:
            ticket.verdicts = [next(verdicts) for _ in ticket.deliveries]
    return True


@dataclass
class _Done:
    """A done event as it is remembered, with what has come since its counts were written."""

    event: UUID
    key: Key
    """As the ledger has it."""
    body_hash: str
    until: float
    count: int = 0
    addresses: list[str | None] = field(default_factory=list)


class DuplicateCache:
    """Remembers done events that come again and again; their copies are counted asynchronously."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock = store, clock
        self._known: OrderedDict[Key, _Done] = OrderedDict()
        self._counted: dict[Key, _Done] = {}
        self._lock = threading.Lock()
        self._writing = False

    def answer(self, deliveries: Sequence[Delivery]) -> list[Verdict] | None:
        """Return verdicts when every delivery is a copy of an event known to be done; else None."""
        if not self._known or not deliveries:
            return None
        now = self._clock()
        with self._lock:
            found = []
            for delivery in deliveries:
                done = self._known.get(delivery.key)
                # Another body is a conflict, which the ledger keeps.
                if done is None or done.until < now or done.body_hash != delivery.body_hash:
                    return None
                found.append(done)
            for delivery, done in zip(deliveries, found, strict=True):
                done.count += 1
                done.addresses = [*done.addresses[-RING + 1 :], clipped(delivery.address)]
                self._counted[done.key] = done
            if not self._writing:
                self._writing = True
                threading.Thread(target=self._write_for_ever, daemon=True, name="storms").start()
        return [Verdict(done.event, done.key[1], first_seen=False) for done in found]

    def learn(self, deliveries: Sequence[Delivery], verdicts: Sequence[Verdict]) -> None:
        """Remember the events of which the ledger just said that they are done and came often enough."""
        for delivery, verdict in zip(deliveries, verdicts, strict=True):
            if verdict.done_duplicates < STORM:
                continue
            key, until = (delivery.source, verdict.event_id), self._clock() + MEMORY
            with self._lock:
                new = _Done(verdict.event, key, delivery.body_hash, until)
                # An entry that is there already keeps what it has counted.
                done = self._known.setdefault(delivery.key, new)
                done.event, done.body_hash, done.until = new.event, new.body_hash, new.until
                self._known.move_to_end(delivery.key)
                while len(self._known) > ROOM:
                    self._known.popitem(last=False)

    def flush(self) -> int:
        """Write the counts; return how many duplicates that were. What fails is tried again later."""
        with self._lock:
            counted, self._counted = self._counted, {}
            repeated = [
                Repeated(key, tuple(done.addresses), done.count) for key, done in sorted(counted.items())
            ]
            for done in counted.values():
                done.count, done.addresses = 0, []
        total: Counter[tuple[CounterKind, str, str]] = Counter()
        for item in repeated:
            total[CounterKind.DELIVERY, item.key[0], "duplicate"] += item.count
        try:
            with self._store.write() as connection:
                note_duplicates(self._store, connection, repeated)
                bump(self._store, connection, total)
        except LedgerError as error:
            log.warning("%d duplicates are not counted yet: %s", total.total(), error)
            with self._lock:
                for item in repeated:
                    done = counted[item.key]
                    done.count += item.count
                    done.addresses = [*item.addresses, *done.addresses][-RING:]
                    self._counted[item.key] = done
            return 0
        return total.total()

    def _write_for_ever(self) -> None:
        while True:
            time.sleep(FLUSH)
            if self._counted:
                try:
                    self.flush()
                except Exception:
                    log.exception("Counts of a storm could not be written; they are lost.")
