"""Recording deliveries: one INSERT decides which are first-seen, and no lookup comes before it.

`record` records a batch in one transaction, duplicates and all. `record_first_seen` is the fast path for what
is first-seen and nothing special. Group commit tries the fast path first and records what it leaves.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, exc, func, select, text, update

from receiver.ledger.counters import CounterKind, bump
from receiver.ledger.intake.delivery import Delivery, Key, Verdict
from receiver.ledger.intake.duplicates import Repeated, note_conflict, note_duplicates
from receiver.ledger.intake.insert import insert_alone, insert_new
from receiver.ledger.states import UNFINISHED, State
from receiver.ledger.store import Store
from receiver.ledger.tables import EVENT
from receiver.ledger.text import uuid7


class Pruned(Exception):
    """An id was forgotten between the insert that it stopped and the update that missed it."""


def record(store: Store, deliveries: Sequence[Delivery]) -> list[Verdict]:
    """Record a batch in one transaction and return a verdict for each delivery, in their order.

    Texts that no column holds are made to fit first. A batch that the database refuses all the same is
    redone one by one, so that one bad row harms no other; its error is raised after the others are recorded.
    Raises LedgerUnavailable: whatever stands of the batch then (nothing, save in a redo) is a duplicate
    when it comes again.
    """
    try:
        return record_together(store, deliveries)
    except (exc.StatementError, Pruned):
        verdicts: list[Verdict] = []
        refused: Exception | None = None
        for delivery in deliveries:
            try:
                verdicts += record_together(store, [delivery])
            except (exc.StatementError, Pruned) as error:
                refused = refused or error
        if refused is not None:
            raise refused from None
        return verdicts


def record_together(
    store: Store, deliveries: Sequence[Delivery], known: Collection[Key] = ()
) -> list[Verdict]:
    """Record as `record` does, but all or none: raises what the database says of a batch that it refuses.

    Events that are `known` to be in the ledger are not inserted; raises Pruned if one is there no more.
    """
    if not deliveries:
        return []
    batch = [delivery.storable() for delivery in deliveries]
    # Every transaction takes its rows in the order of their keys, else overlapping batches deadlock.
    places, leaders = _by_key(batch)
    leaders = [place for place in leaders if batch[place].key not in known]
    rows = {batch[place].key: _new_row(batch[place]) for place in leaders}
    verdicts: dict[int, Verdict] = {}
    with store.write() as connection:
        if not store.sqlite:
            # Two copies of one body under two ids must not miss each other: the second waits for the first.
            guarded = [batch[place] for place in leaders if batch[place].replay_guard == "park"]
            for body in sorted({f"{item.source}:{item.body_hash}" for item in guarded}):
                lock = func.pg_advisory_xact_lock(func.hashtextextended(body, text("0")))
                connection.execute(select(lock))
        new = insert_new(store, connection, list(rows.values())) if rows else set()
        first = sorted(place for place in leaders if rows[batch[place].key]["id"] in new)
        parked = _flag_replays(connection, [(batch[place], rows[batch[place].key]) for place in first])
        for place in first:
            row = rows[batch[place].key]
            nudge = row["state"] == State.RECEIVED and row["id"] not in parked
            verdicts[place] = Verdict(row["id"], row["event_id"], first_seen=True, nudge=nudge)
        # The others of their event's copies, in the order of keys and, within one key, of arrival.
        copies: dict[Key, list[int]] = defaultdict(list)
        for place in places:
            if place not in verdicts:
                copies[batch[place].key].append(place)
        repeated = [
            Repeated(key, [batch[place].address for place in copy], len(copy)) for key, copy in copies.items()
        ]
        known = note_duplicates(store, connection, repeated)
        for key, copy in copies.items():
            for place in copy:
                verdicts[place] = _duplicate(store, connection, batch[place], known.get(key))
        counts = Counter(
            (CounterKind.DELIVERY, batch[place].source, verdicts[place].name) for place in places
        )
        # A first-seen event that needs no worker waits for a person.
        counts.update(
            (CounterKind.PARKED, batch[place].source, batch[place].type)
            for place in first
            if not verdicts[place].nudge
        )
        bump(store, connection, counts)
    return [verdicts[place] for place in range(len(batch))]


def record_first_seen(store: Store, deliveries: Sequence[Delivery]) -> list[Verdict | None]:
    """Fast path: record those of a batch that are first-seen; return a verdict for each, None for the rest.

    For deliveries that are plain. What it leaves is for `record`, and so is a batch that fails: it raises
    LedgerUnavailable, or whatever says that a row of it is refused.
    """
    batch = [delivery.storable() for delivery in deliveries]
    rows = {place: _new_row(batch[place]) for place in _by_key(batch)[1]}
    new = insert_alone(store, list(rows.values()))
    verdicts: list[Verdict | None] = [None] * len(batch)
    for place, row in rows.items():
        if row["id"] in new:
            verdicts[place] = Verdict(row["id"], row["event_id"], first_seen=True, nudge=True)
    return verdicts


def _by_key(batch: Sequence[Delivery]) -> tuple[list[int], list[int]]:
    """Return the places of a batch in the order of keys, and of those the first of each key."""
    places = sorted(range(len(batch)), key=lambda place: batch[place].key)
    leaders: dict[Key, int] = {}
    for place in places:
        leaders.setdefault(batch[place].key, place)
    return places, list(leaders.values())


def _new_row(delivery: Delivery) -> dict[str, Any]:
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


def _duplicate(store: Store, connection: Connection, delivery: Delivery, row: Row[Any] | None) -> Verdict:
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


# Ids outside the signed bytes: a captured body that comes again under another id is flagged, or parked.


def _flag_replays(connection: Connection, first: Sequence[tuple[Delivery, Mapping[str, Any]]]) -> set[UUID]:
    """Flag the new rows whose bytes came before under another id; return the ids of those that it parked.

    `first` is in the order of arrival: of two equal bodies in one batch, the later one is suspected.
    """
    parked = set()
    not_before: dict[str, list[UUID]] = defaultdict(list)
    for delivery, row in reversed(first):
        not_before[delivery.body_hash].append(row["id"])
        if delivery.replay_guard is None:
            continue
        same = (
            EVENT.c.source == delivery.source,
            EVENT.c.body_hash == delivery.body_hash,
            EVENT.c.type == delivery.type,
            EVENT.c.id.not_in(not_before[delivery.body_hash]),
        )
        if connection.execute(select(EVENT.c.id).where(*same).limit(1)).first() is None:
            continue
        change: dict[str, Any] = {"suspected_replay": True}
        if delivery.replay_guard == "park" and row["state"] == State.RECEIVED:
            reason = "Suspected replay: these signed bytes came before under another id."
            change |= {"state": State.PARKED, "reason": reason}
            parked.add(row["id"])
        connection.execute(update(EVENT).where(EVENT.c.id == row["id"]).values(**change))
    return parked
