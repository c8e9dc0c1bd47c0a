"""Group commit: requests of one process that meet are recorded in one transaction.

The gateway's deliveries go through `GroupCommit`, those of other WSGI servers straight to the `Recorder`. Its
`DuplicateCache` answers storms of copies from memory.
"""

import asyncio
import logging
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any
from uuid import UUID

from receiver.ledger.counters import CounterKind, bump
from receiver.ledger.errors import CommitUncertain, LedgerError, LedgerUnavailable
from receiver.ledger.intake.delivery import Delivery, Key, Verdict
from receiver.ledger.intake.duplicates import RING, Repeated, note_duplicates
from receiver.ledger.intake.recording import record, record_first_seen, record_together
from receiver.ledger.store import Store
from receiver.ledger.text import clipped

log = logging.getLogger(__name__)

# Deliveries of one transaction, or one request: the first of a burst must not wait for its last.
BATCH_MAX = 500

# Bytes of the bodies of one transaction: as one parameter they take several times as much.
BATCH_BYTES = 4 * 1024 * 1024

# Seconds that a request must have left to be recorded.
LEAST = 0.5

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

# What becomes of one request's deliveries: a verdict for each, in their order, or why none was recorded.
Outcome = Sequence[Verdict] | Exception

# Called with the verdicts of a commit that stands.
Committed = Callable[[Sequence[Verdict]], None]


class Recorder:
    """Records the deliveries of one request in a commit of their own, or answers them from memory."""

    def __init__(self, store: Store, committed: Committed = lambda _verdicts: None) -> None:
        self._store, self._committed = store, committed
        self.cache = DuplicateCache(store)

    def record(self, deliveries: Sequence[Delivery]) -> Sequence[Verdict]:
        """Record a request's deliveries and return their verdicts in order; raises as `recording.record`."""
        known = self.cache.answer(deliveries)
        if known is not None:
            return known
        outcome = next(done[0] for done in self.record_requests([deliveries]) if done)
        if isinstance(outcome, Exception):
            raise outcome
        self.cache.learn(deliveries, outcome)
        return outcome

    def record_requests(self, requests: Sequence[Sequence[Delivery]]) -> Iterator[dict[int, Outcome]]:
        """Record what several requests bring; yield the outcomes of each transaction, by a request's place.

        The fast path records what is first-seen, one transaction what that leaves. One request's fault is no
        other's, and a request of several events stands as a whole or not at all.
        """
        # Not for a request of several events, as the fast path may record some of them.
        fast = [
            place
            for place, events in enumerate(requests)
            if len(events) == 1 and events[0].is_plain and len(events[0].body) <= SHORT
        ]
        rest = dict(enumerate(requests))
        known: set[Key] = set()
        if fast:
            outcomes, known = self._record_first_seen({place: requests[place] for place in fast})
            yield outcomes
            rest = {place: events for place, events in rest.items() if place not in outcomes}
        if (len(rest) > 1 or known) and (outcomes := self._record_together(rest, known)):
            yield outcomes
            return
        away: LedgerUnavailable | None = None
        for place, events in rest.items():
            if away is not None:
                yield {place: away}
                continue
            try:
                verdicts = record(self._store, events)
            except LedgerUnavailable as error:
                # Nor is it there for the others: to try each would take minutes.
                away = error
                yield {place: error}
            except Exception as error:  # noqa: BLE001 - its request is answered with it
                yield {place: error}
            else:
                self._committed(verdicts)
                yield {place: verdicts}

    def _record_first_seen(
        self, requests: Mapping[int, Sequence[Delivery]]
    ) -> tuple[dict[int, Outcome], set[Key]]:
        """Record by the fast path what is first-seen; return it, and the keys that are in the ledger already.

        What it leaves for any other reason is in neither.
        """
        try:
            verdicts = record_first_seen(self._store, [events[0] for events in requests.values()])
        except LedgerUnavailable as error:
            return dict.fromkeys(requests, error), set()
        except Exception:  # noqa: BLE001 - the delivery at fault raises it again, alone
            return {}, set()
        self._committed([verdict for verdict in verdicts if verdict])
        pairs = list(zip(requests, verdicts, strict=True))
        known = {requests[place][0].storable().key for place, verdict in pairs if not verdict}
        return {place: [verdict] for place, verdict in pairs if verdict}, known

    def _record_together(
        self, requests: Mapping[int, Sequence[Delivery]], known: Collection[Key]
    ) -> dict[int, Outcome]:
        """Record several requests in one transaction; return nothing when one of them makes it fail."""
        try:
            verdicts = record_together(self._store, list(chain.from_iterable(requests.values())), known)
        except LedgerUnavailable as error:
            return dict.fromkeys(requests, error)
        except Exception:  # noqa: BLE001 - the delivery at fault raises it again, alone
            return {}
        self._committed(verdicts)
        in_turn = iter(verdicts)
        return {place: [next(in_turn) for _ in events] for place, events in requests.items()}


@dataclass(slots=True)
class _Waiting:
    """A request whose deliveries wait for a commit."""

    deliveries: Sequence[Delivery]
    outcome: asyncio.Future[Sequence[Verdict]]
    until: float


class GroupCommit:
    """Group commit on an event loop: requests that wait together are recorded in one transaction.

    One commit is under way at a time, in a thread of its own; requests that arrive meanwhile are the next
    batch, so batches are as large as the load. No request waits longer than it said, whatever the database
    does.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, "commit")
        # The thread starts here and now: where none can, the process must not begin to serve.
        self._thread.submit(int).result()
        self._waiting: deque[_Waiting] = deque()
        self._under_way: Sequence[_Waiting] = ()
        self._committing = False

    async def record(self, deliveries: Sequence[Delivery], patience: float) -> Sequence[Verdict]:
        """Return the verdicts once they are committed; raises LedgerUnavailable, or what refuses them.

        After `patience` seconds it raises LedgerUnavailable, or CommitUncertain when a commit is under way by
        then that may still stand.
        """
        known = self._recorder.cache.answer(deliveries)
        if known is not None:
            return known
        mine = _Waiting(deliveries, self._loop.create_future(), self._loop.time() + patience)
        self._waiting.append(mine)
        if not self._committing:
            self._committing = True
            # Not at once: what else this turn of the loop brings belongs to the same batch.
            self._loop.call_soon(self._commit)
        verdicts = await mine.outcome
        self._recorder.cache.learn(deliveries, verdicts)
        return verdicts

    def expire(self) -> None:
        """Give up the requests whose patience has ended; called a few times a second."""
        now = self._loop.time()
        # Their times are nearly in order: a slow verification has used up some of its request's.
        _settle([(waiting, LedgerUnavailable()) for waiting in self._waiting if waiting.until < now])
        while self._waiting and self._waiting[0].outcome.done():
            self._waiting.popleft()
        for waiting in self._under_way:
            # It may still be recorded: then its next delivery is a duplicate.
            if waiting.until < now:
                _settle([(waiting, CommitUncertain())])

    def _commit(self) -> None:
        batch: list[_Waiting] = []
        room, size, soon = BATCH_MAX, 0, self._loop.time() + LEAST
        while self._waiting and ((room > 0 and size < BATCH_BYTES) or not batch):
            waiting = self._waiting.popleft()
            if waiting.until < soon:
                # It would be answered 503 while it is being recorded.
                _settle([(waiting, LedgerUnavailable())])
            elif not waiting.outcome.done():
                batch.append(waiting)
                room -= len(waiting.deliveries)
                size += sum(len(delivery.body) for delivery in waiting.deliveries)
        self._under_way = batch
        self._committing = bool(batch)
        if batch:
            self._thread.submit(self._record, batch)

    def _record(self, batch: Sequence[_Waiting]) -> None:
        """Record a batch, in the committing thread."""
        try:
            for outcomes in self._recorder.record_requests([waiting.deliveries for waiting in batch]):
                self._in_loop(_settle, [(batch[place], outcome) for place, outcome in outcomes.items()])
        except BaseException:
            log.exception("A batch could not be recorded.")
            self._in_loop(_settle, [(waiting, CommitUncertain()) for waiting in batch])
        self._in_loop(self._commit)

    def _in_loop(self, call: Callable[..., None], *given: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: the server has stopped
            self._loop.call_soon_threadsafe(call, *given)


def _settle(settled: Iterable[tuple[_Waiting, Outcome]]) -> None:
    for waiting, outcome in settled:
        # A request whose patience has ended, or whose client has gone, waits no more.
        if waiting.outcome.done():
            continue
        if isinstance(outcome, Exception):
            waiting.outcome.set_exception(outcome)
        else:
            waiting.outcome.set_result(outcome)


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
                threading.Thread(target=self._write_for_ever, daemon=True, name="storms").start()
                self._writing = True
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
