"""Group commit: requests of one process that meet are recorded in one transaction."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from receiver.ledger.errors import LedgerUnavailable
from receiver.ledger.record import (
    Delivery,
    Verdict,
    is_plain,
    record,
    record_first_seen,
    record_together,
)
from receiver.ledger.store import Store
from receiver.ledger.storms import DuplicateCache

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
