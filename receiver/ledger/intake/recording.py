"""Recording deliveries: one INSERT decides which are first-seen; nobody looks first."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Protocol
from uuid import UUID

from sqlalchemy import Connection, Row, exc, func, select, text, update

from receiver.ledger.counters import CounterKind, bump
from receiver.ledger.intake.duplicates import Repeated, note_conflict, note_duplicates
from receiver.ledger.intake.insert import insert_alone, insert_new
from receiver.ledger.states import UNFINISHED, State
from receiver.ledger.store import Store
from receiver.ledger.tables import EVENT
from receiver.ledger.text import clipped, plain, storable, uuid7

# Ids outside the signed bytes: a captured body that comes again under another id is marked, or parked.


Key_guard = tuple[str, str]


class Signed(Protocol):
    """The part of a delivery that this looks at."""

    @property
    def source(self) -> str: ...  # noqa: D102
    @property
    def type(self) -> str: ...  # noqa: D102
    @property
    def key(self) -> Key_guard: ...  # noqa: D102
    @property
    def body_hash(self) -> str: ...  # noqa: D102
    @property
    def replay_guard(self) -> str | None: ...  # noqa: D102


def serialise_replays(store: Store, connection: Connection, ordered: Iterable[Signed]) -> None:
    """Let two copies of one body under two ids not miss each other: the second waits for the first."""
    if store.sqlite:
        return
    bodies = {f"{d.source}:{d.body_hash}" for d in ordered if d.replay_guard == "park"}
    for body in sorted(bodies):
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(body, text("0")))))


def flag_replays(
    connection: Connection, new: Sequence[Signed], rows: Mapping[Key_guard, Row[Any]]
) -> set[UUID]:
    """Mark the new rows whose bytes were there before under another id; return those that it parked."""
    parked = set()
    not_before: dict[str, list[UUID]] = defaultdict(list)
    for delivery in reversed(new):
        row = rows[delivery.key]
        not_before[delivery.body_hash].append(row.id)
        if delivery.replay_guard is None or not _body_known(
            connection, delivery, not_before[delivery.body_hash]
        ):
            continue
        change: dict[str, Any] = {"suspected_replay": True}
        if delivery.replay_guard == "park" and row.state == State.RECEIVED:
            change |= {
                "state": State.PARKED,
                "reason": "Suspected replay: these signed bytes came before under another id.",
            }
            parked.add(row.id)
        connection.execute(update(EVENT).where(EVENT.c.id == row.id).values(**change))
    return parked


def _body_known(connection: Connection, delivery: Signed, not_before: Iterable[UUID]) -> bool:
    same = (
        EVENT.c.source == delivery.source,
        EVENT.c.body_hash == delivery.body_hash,
        EVENT.c.type == delivery.type,
        EVENT.c.id.not_in(not_before),
    )
    return connection.execute(select(EVENT.c.id).where(*same).limit(1)).first() is not None


Key = tuple[str, str]

PLAUSIBLE = datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)
"""A provider's time outside of this is garbage, and near its own ends `datetime` cannot change zones."""


class Pruned(Exception):
    """An id was forgotten between the insert that it stopped and the update that missed it."""


@dataclass(frozen=True)
class Delivery:
    """One event of one verified POST, ready to be recorded. `body` is exact; `created_at` the provider's."""

    source: str
    event_id: str
    type: str
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    content_type: str | None = None
    created_at: datetime | None = None
    address: str | None = None
    problem: str | None = None
    """Why it needs a person: no id, or does not parse. It is kept, parked."""
    replay_guard: str | None = None
    """`run` or `park` where the id is outside the signed bytes: what equal bytes under a new id meet."""
    traceparent: str | None = None
    """The trace that it came in, as W3C Trace Context writes it."""

    @property
    def key(self) -> Key:
        """Return what makes the event unique."""
        return self.source, self.event_id

    @cached_property
    def body_hash(self) -> str:
        """Return the SHA-256 of the body, in hex."""
        return hashlib.sha256(self.body).hexdigest()


@dataclass(frozen=True)
class Verdict:
    """What the ledger says of one delivery."""

    event: UUID
    event_id: str
    first_seen: bool
    conflict: bool = False
    nudge: bool = False
    """True while the event is unfinished: a duplicate wakes it again."""
    done_duplicates: int = 0
    """Of a done event with this very body: how many duplicates it has had."""

    @property
    def name(self) -> str:
        """Return it in words: first seen, duplicate or conflict."""
        return "first seen" if self.first_seen else "conflict" if self.conflict else "duplicate"


def record(store: Store, deliveries: Sequence[Delivery]) -> list[Verdict]:
    """Record a batch in one transaction and return a verdict for each delivery, in their order.

    Texts that no column holds are made to fit first. A batch that the database refuses all the same is
    redone one by one, so that one bad row harms nobody; its error is raised after the others are recorded.
    Raises LedgerUnavailable: whatever stands of the batch then (nothing, save in a redo) is a duplicate
    when it comes again.
    """
    try:
        return record_together(store, deliveries)
    except (exc.StatementError, Pruned):
        return _one_by_one(store, [_storable(delivery) for delivery in deliveries])


def record_together(store: Store, deliveries: Sequence[Delivery]) -> list[Verdict]:
    """Record as `record` does, but all or none: raises what the database says of a batch it refuses."""
    if not deliveries:
        return []
    batch = [_storable(delivery) for delivery in deliveries]
    with store.write() as connection:
        return _record(store, connection, batch)


def record_first_seen(store: Store, deliveries: Sequence[Delivery]) -> list[Verdict | None]:
    """Record those of a batch that are first-seen in the shortest way; a verdict for each, None for the rest.

    For deliveries that are `plain`. What it leaves is for `record`, and so is a batch that fails: it raises
    LedgerUnavailable, or whatever says that a row of it is refused.
    """
    batch = [_storable(delivery) for delivery in deliveries]
    rows = {place: _row(batch[place]) for place in _in_order(batch)[1].values()}
    new = insert_alone(store, list(rows.values()))
    found = {place: row for place, row in rows.items() if row["id"] in new}
    return [_first_seen(found[place]) if place in found else None for place in range(len(batch))]


def is_plain(delivery: Delivery) -> bool:
    """Say whether nothing but its id decides what becomes of a delivery."""
    return delivery.problem is None and delivery.replay_guard is None


def _first_seen(row: Mapping[str, Any]) -> Verdict:
    return Verdict(row["id"], row["event_id"], first_seen=True, nudge=True)


def _in_order(deliveries: Sequence[Delivery]) -> tuple[list[int], dict[Key, int]]:
    """Return the places of deliveries by key, and the first place of each key in that order."""
    places = sorted(range(len(deliveries)), key=lambda place: deliveries[place].key)
    leaders: dict[Key, int] = {}
    for place in places:
        leaders.setdefault(deliveries[place].key, place)
    return places, leaders


def _one_by_one(store: Store, batch: Iterable[Delivery]) -> list[Verdict]:
    verdicts: list[Verdict] = []
    refused: Exception | None = None
    for delivery in batch:
        try:
            with store.write() as connection:
                verdicts += _record(store, connection, [delivery])
        except (exc.StatementError, Pruned) as error:
            refused = refused or error
    if refused is not None:
        raise refused
    return verdicts


def _storable(delivery: Delivery) -> Delivery:
    """Return the delivery as the columns take it: no text that they cannot hold loses what is verified."""
    created = delivery.created_at
    fits = created is not None and created.tzinfo is not None and PLAUSIBLE[0] <= created < PLAUSIBLE[1]
    return replace(
        delivery,
        event_id=storable(delivery.event_id),
        type=clipped(delivery.type) or "",
        created_at=created if fits else None,
        content_type=clipped(delivery.content_type),
        address=clipped(delivery.address),
        problem=None if delivery.problem is None else plain(delivery.problem),
    )


def _record(store: Store, connection: Connection, deliveries: Sequence[Delivery]) -> list[Verdict]:
    # Everybody inserts and updates in the same order, else overlapping batches deadlock on PostgreSQL.
    places, leaders = _in_order(deliveries)
    ordered = [deliveries[place] for place in leaders.values()]
    serialise_replays(store, connection, ordered)
    fresh = {
        (row.source, row.event_id): row for row in insert_new(store, connection, list(map(_row, ordered)))
    }
    first = sorted(leaders[key] for key in fresh)
    parked = flag_replays(connection, [deliveries[place] for place in first], fresh)
    verdicts = {place: _first(fresh[deliveries[place].key], parked) for place in first}
    others = [place for place in places if place not in verdicts]
    known = note_duplicates(store, connection, _repeated(deliveries, others))
    for place in others:
        verdicts[place] = _duplicate(store, connection, deliveries[place], known)
    said = [verdicts[place] for place in range(len(deliveries))]
    bump(store, connection, _counted(deliveries, said))
    return said


def _counted(
    deliveries: Iterable[Delivery], verdicts: Sequence[Verdict]
) -> Counter[tuple[CounterKind, str, str]]:
    both = list(zip(deliveries, verdicts, strict=True))
    told = [(CounterKind.DELIVERY, delivery.source, verdict.name) for delivery, verdict in both]
    # What is first seen and wakes nobody waits for a person.
    held = [
        (CounterKind.PARKED, one.source, one.type) for one, said in both if said.first_seen and not said.nudge
    ]
    return Counter(told + held)


def _first(row: Row[Any], parked: set[UUID]) -> Verdict:
    nudge = row.state == State.RECEIVED and row.id not in parked
    return Verdict(row.id, row.event_id, first_seen=True, nudge=nudge)


def _row(delivery: Delivery) -> dict[str, Any]:
    return {
        "id": uuid7(),
        "source": delivery.source,
        "event_id": delivery.event_id,
        "type": delivery.type,
        "state": State.PARKED if delivery.problem else State.RECEIVED,
        "reason": delivery.problem,
        "created_at": delivery.created_at,
        "address": delivery.address,
        "body_hash": delivery.body_hash,
        "body": delivery.body,
        "headers": json.dumps(dict(delivery.headers)),
        "content_type": delivery.content_type,
        "traceparent": delivery.traceparent,
    }


def _repeated(deliveries: Sequence[Delivery], places: Iterable[int]) -> list[Repeated]:
    """Gather the duplicates of each event, in the order of their keys and, within it, of their coming."""
    addresses: dict[Key, list[str | None]] = defaultdict(list)
    for place in places:
        addresses[deliveries[place].key].append(deliveries[place].address)
    return [Repeated(key, came, len(came)) for key, came in addresses.items()]


def _duplicate(
    store: Store, connection: Connection, delivery: Delivery, known: Mapping[Key, Row[Any]]
) -> Verdict:
    row = known.get(delivery.key)
    if row is None:
        raise Pruned
    conflict = row.body_hash != delivery.body_hash
    if conflict:
        note_conflict(store, connection, row.id, delivery)
    return Verdict(
        row.id,
        row.event_id,
        first_seen=False,
        conflict=conflict,
        nudge=row.state in UNFINISHED,
        done_duplicates=row.duplicates if row.state == State.DONE and not conflict else 0,
    )
