"""Group commit: requests of one process that meet are recorded in one transaction."""

import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from receiver.ledger.counters import CounterKind, bump
from receiver.ledger.errors import LedgerError, LedgerUnavailable
from receiver.ledger.intake.duplicates import RING, Repeated, note_duplicates
from receiver.ledger.intake.recording import (
    Delivery,
    Key,
    Verdict,
    is_plain,
    record,
    record_first_seen,
    record_together,
)
from receiver.ledger.store import Store
from receiver.ledger.text import clipped

# Storms: an event that is done and still comes again and again is answered from memory for a minute.


log = logging.getLogger(__name__)

FIRST = 5
"""Duplicates of a done event that the ledger itself counts: only who goes on after that is a storm."""

MEMORY = 60.0
"""Seconds after which the ledger is asked again: it may have been rerun meanwhile."""

ROOM = 10_000
"""Events remembered at once; the oldest make room."""

FLUSH = 1.0
"""Seconds between two writings of counts: a killed process loses no more of them, and nothing else."""


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
    """Remembers done events that come too often, and writes down later how often they came."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock = store, clock
        self._known: OrderedDict[Key, _Done] = OrderedDict()
        self._counted: dict[Key, _Done] = {}
        self._lock = threading.Lock()
        self._writing = False

    def answer(self, deliveries: Sequence[Delivery]) -> list[Verdict] | None:
        """Return verdicts when every delivery is a copy of an event known to be done; else None."""
        if not self._known:
            return None
        now = self._clock()
        with self._lock:
            found = [self._find(delivery, now) for delivery in deliveries]
            if not found or not all(found):
                return None
            known = [done for done in found if done]
            for delivery, done in zip(deliveries, known, strict=True):
                self._count(delivery, done)
        return [Verdict(done.event, done.key[1], first_seen=False) for done in known]

    def learn(self, deliveries: Sequence[Delivery], verdicts: Sequence[Verdict]) -> None:
        """Remember what the ledger just said is done, has this very body, and came often enough."""
        for delivery, verdict in zip(deliveries, verdicts, strict=True):
            if verdict.done_duplicates >= FIRST:
                self._remember(delivery, verdict)

    def flush(self) -> int:
        """Write the counts down; return how many duplicates that were. What fails is tried again later."""
        with self._lock:
            counted, self._counted = self._counted, {}
            repeated = [
                Repeated(done.key, tuple(done.addresses), done.count)
                for done in sorted(counted.values(), key=lambda done: done.key)
            ]
            for done in counted.values():
                done.count, done.addresses = 0, []
        try:
            with self._store.write() as connection:
                note_duplicates(self._store, connection, repeated)
                counts = [(one.key[0], one.count) for one in repeated]
                bump(self._store, connection, _by_source(counts))
        except LedgerError as error:
            log.warning("%d duplicates are not counted yet: %s", sum(one.count for one in repeated), error)
            self._count_again(repeated, {done.key: done for done in counted.values()})
            return 0
        return sum(one.count for one in repeated)

    def _find(self, delivery: Delivery, now: float) -> _Done | None:
        done = self._known.get(delivery.key)
        if done is None or done.until < now or done.body_hash != delivery.body_hash:
            return None
        return done

    def _count(self, delivery: Delivery, done: _Done) -> None:
        done.count += 1
        done.addresses = [*done.addresses[-RING + 1 :], clipped(delivery.address)]
        self._counted[done.key] = done
        if not self._writing:
            self._writing = True
            threading.Thread(target=self._write_for_ever, daemon=True, name="storms").start()

    def _count_again(self, repeated: Sequence[Repeated], counted: Mapping[Key, _Done]) -> None:
        with self._lock:
            for one in repeated:
                done = counted[one.key]
                done.count += one.count
                done.addresses = [*one.addresses, *done.addresses][-RING:]
                self._counted[done.key] = done

    def _remember(self, delivery: Delivery, verdict: Verdict) -> None:
        key, until = (delivery.source, verdict.event_id), self._clock() + MEMORY
        with self._lock:
            done = self._known.setdefault(delivery.key, _Done(verdict.event, key, delivery.body_hash, until))
            # The same one as before keeps what it has counted.
            done.event, done.body_hash, done.until = verdict.event, delivery.body_hash, until
            self._known.move_to_end(delivery.key)
            while len(self._known) > ROOM:
                self._known.popitem(last=False)

    def _write_for_ever(self) -> None:
        while True:
            time.sleep(FLUSH)
            if self._counted:
                try:
                    self.flush()
                except Exception:
                    log.exception("Counts of a storm could not be written; they are lost.")


def _by_source(counts: Iterable[tuple[str, int]]) -> Counter[tuple[CounterKind, str, str]]:
    total: Counter[tuple[CounterKind, str, str]] = Counter()
    for source, count in counts:
        total[CounterKind.DELIVERY, source, "duplicate"] += count
    return total


BATCH_MAX = 500
"""Deliveries of one transaction, or one request: the first of a burst must not wait for its last."""

SHORT = 64 * 1024
"""Bytes of a body up to which it takes the short way: all of a batch is one text there."""


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
        """Wait until somebody wakes it."""
        self._asleep.acquire()

    def wake(self) -> None:
        """Wake who sleeps; only the leader of the moment does, so that twice is once."""
        if self._asleep.locked():
            self._asleep.release()


class Recorder:
    """Records deliveries; each caller returns once its own are committed, and hears of its own errors alone.

    Who comes while nobody records does so at once, alone. Who comes meanwhile waits with all others that do,
    and the first of them records for all: the more load, the larger the batches.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._storms = store, DuplicateCache(store)
        self._lock = threading.Lock()
        self._waiting: list[_Ticket] = []
        self._busy = False

    def record(self, deliveries: Sequence[Delivery]) -> Sequence[Verdict]:
        """Record a request's deliveries and return their verdicts in order; raises as `record` does."""
        known = self._storms.answer(deliveries)
        return self._record(deliveries) if known is None else known

    def _record(self, deliveries: Sequence[Delivery]) -> Sequence[Verdict]:
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
            # Its leader was ended from outside.
            raise LedgerUnavailable
        self._storms.learn(deliveries, ticket.verdicts)
        return ticket.verdicts

    def _lead(self) -> None:
        batch = self._take()
        try:
            _record_all(self._store, batch)
        finally:
            with self._lock:
                self._busy = bool(self._waiting)
                if self._waiting:
                    self._waiting[0].leads = True
                    self._waiting[0].wake()
            for ticket in batch:
                ticket.wake()

    def _take(self) -> list[_Ticket]:
        """Take those who wait, oldest first: the leader itself, and whom its transaction has room for."""
        with self._lock:
            room, count = BATCH_MAX, 0
            while count < len(self._waiting) and (room > 0 or not count):
                room -= len(self._waiting[count].deliveries)
                count += 1
            batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch


def _record_all(store: Store, batch: Sequence[_Ticket]) -> None:
    """Record what is first-seen in the shortest way, and what that leaves as `record` does it."""
    # A request of several events stands as a whole or not at all, so it is left to that.
    plain = [ticket for ticket in batch if len(ticket.deliveries) == 1 and _is_short(ticket.deliveries[0])]
    verdicts: Sequence[Verdict | None]
    try:
        verdicts = record_first_seen(store, [ticket.deliveries[0] for ticket in plain]) if plain else []
    except LedgerUnavailable as error:
        verdicts = [None] * len(plain)
        for ticket in plain:
            ticket.error = error
    except Exception:  # noqa: BLE001 - whoever is the cause raises it below
        verdicts = [None] * len(plain)
    for ticket, verdict in zip(plain, verdicts, strict=True):
        if verdict is not None:
            ticket.verdicts = [verdict]
            ticket.wake()
    rest = [ticket for ticket in batch if not ticket.verdicts and ticket.error is None]
    if rest:
        _record_rest(store, rest)


def _is_short(delivery: Delivery) -> bool:
    return is_plain(delivery) and len(delivery.body) <= SHORT


def _record_rest(store: Store, batch: Sequence[_Ticket]) -> None:
    if len(batch) == 1:
        _record_alone(store, batch[0])
        return
    try:
        verdicts = iter(record_together(store, [one for ticket in batch for one in ticket.deliveries]))
    except LedgerUnavailable as error:
        for ticket in batch:
            ticket.error = error
    except Exception:  # noqa: BLE001 - whoever is the cause raises it below
        # One of them is the cause, and the others must not suffer for it.
        for ticket in batch:
            _record_alone(store, ticket)
    else:
        for ticket in batch:
            ticket.verdicts = [next(verdicts) for _ in ticket.deliveries]


def _record_alone(store: Store, ticket: _Ticket) -> None:
    try:
        ticket.verdicts = record(store, ticket.deliveries)
    except Exception as error:  # noqa: BLE001 - its caller raises it
        ticket.error = error
