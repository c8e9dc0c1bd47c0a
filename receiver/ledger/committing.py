"""Group commit: requests of one process that meet are recorded in one transaction."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from receiver.ledger.errors import LedgerUnavailable
from receiver.ledger.record import Delivery, Verdict, record, record_together
from receiver.ledger.store import Store
from receiver.ledger.storms import Storms

BATCH_MAX = 500
"""Deliveries of one transaction, or one request: the first of a burst must not wait for its last."""


@dataclass
class _Ticket:
    """One request's deliveries, and what became of them."""

    deliveries: Sequence[Delivery]
    awake: threading.Event = field(default_factory=threading.Event)
    leads: bool = False
    verdicts: Sequence[Verdict] = ()
    error: Exception | None = None


class Recorder:
    """Records deliveries; each caller returns once its own are committed, and hears of its own errors alone.

    Who comes while nobody records does so at once, alone. Who comes meanwhile waits with all others that do,
    and the first of them records for all: the more load, the larger the batches.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._storms = store, Storms(store)
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
            ticket.awake.wait()
        if ticket.leads:
            self._lead()
        if ticket.error is not None:
            raise ticket.error
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
                    self._waiting[0].awake.set()
            for ticket in batch:
                ticket.awake.set()

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
