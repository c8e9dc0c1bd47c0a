"""Storms: an event that is done and still comes again and again is answered from memory for a minute."""

import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from receiver.ledger.duplicates import RING, Repeated, note_duplicates
from receiver.ledger.errors import LedgerError
from receiver.ledger.record import Delivery, Key, Verdict
from receiver.ledger.store import Store
from receiver.ledger.telemetry.tally import CounterKind, bump
from receiver.ledger.texts import clipped

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
