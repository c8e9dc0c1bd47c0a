"""Second deliveries of an event: counts, the last 20, conflicting bodies, revival of dead events."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlmodel import UTCDateTime

from receiver.ledger.intake.delivery import Delivery, Key
from receiver.ledger.states import REVIVAL_PAUSE, Move, State, enters
from receiver.ledger.store import MOMENT, Store
from receiver.ledger.tables import CONFLICT, DUPLICATE, EVENT, insert_for

# Duplicates of one event that are kept with time and address; older ones are only counted.
RING = 20

# Other bodies kept beside one event: enough to see a pattern, too few to fill a disk.
CONFLICTS_KEPT = 10


@dataclass(frozen=True)
class Repeated:
    """Deliveries of one known event that came together, oldest first: their addresses."""

    key: Key
    addresses: Sequence[str | None]
    count: int
    """How many came; more than there are addresses where only the last ones are known."""


def note_duplicates(
    store: Store, connection: sa.Connection, repeated: Sequence[Repeated]
) -> dict[Key, sa.Row[Any]]:
    """Count duplicates of known events, revive those that are dead, and return their rows by key.

    `repeated` is sorted by key. An event that is gone meanwhile is left out.
    """
    if not repeated:
        return {}
    moment = store.moment()
    if store.sqlite:
        times = moment | {"pause_over": moment["now"] - REVIVAL_PAUSE}
        keys = [{"key_source": item.key[0], "key_id": item.key[1], "more": item.count} for item in repeated]
        rows = [row for key in keys for row in connection.execute(_COUNT_ONE, key | times)]
    else:
        sources, ids = [item.key[0] for item in repeated], [item.key[1] for item in repeated]
        arrays = {"sources": sources, "ids": ids, "counts": [item.count for item in repeated]}
        rows = list(connection.execute(_COUNT_ALL, arrays | moment))
    found: dict[Key, sa.Row[Any]] = {(row.source, row.event_id): row for row in rows}
    slots = []
    for item in repeated:
        if (row := found.get(item.key)) is not None:
            latest = list(item.addresses)[-RING:]
            first = row.duplicates - len(latest)
            for number, address in enumerate(latest, start=first):
                # Addresses are erased together with the body, so none is kept beside one that is gone.
                kept = address if row.headers else None
                slots.append({"event": row.id, "slot": number % RING, "address": kept})
    if slots and store.sqlite:
        connection.execute(store.built(_keep), [slot | moment for slot in slots])
    elif slots:
        columns = {name: [slot[name] for slot in slots] for name in slots[0]}
        connection.execute(store.built(_keep), columns | moment)
    return found


def note_conflict(store: Store, connection: sa.Connection, event: UUID, other: Delivery) -> None:
    """Keep another body that came under this event's id, and count it; a body already kept is no news."""
    mine = CONFLICT.c.event == event
    if connection.execute(
        sa.select(CONFLICT.c.at).where(mine, CONFLICT.c.body_hash == other.body_hash)
    ).first():
        return
    kept = connection.execute(sa.select(sa.func.count()).select_from(CONFLICT).where(mine)).scalar_one()
    if kept < CONFLICTS_KEPT:
        connection.execute(
            CONFLICT.insert().values(
                event=event,
                body_hash=other.body_hash,
                at=store.now(),
                body=other.body,
                headers=json.dumps(dict(other.headers)),
                content_type=other.content_type,
            )
        )
    connection.execute(sa.update(EVENT).where(EVENT.c.id == event).values(conflicts=EVENT.c.conflicts + 1))


# The statements, built once: to build one costs as much as to run it.


def _counted(now: Any, pause_over: Any, more: Any) -> dict[str, Any]:
    """Return what duplicates change; a dead event starts anew, unless its pause or a person forbids it."""
    counts = {
        "duplicates": EVENT.c.duplicates + more,
        "first_duplicate_at": sa.func.coalesce(EVENT.c.first_duplicate_at, now),
        "last_duplicate_at": now,
    }
    # A person's discard stands: no provider's retry undoes it. An erased body cannot be handled again.
    revives = sa.and_(
        EVENT.c.state == State.DEAD,
        EVENT.c.discarded.is_(False),
        EVENT.c.body.is_not(None),
        sa.or_(EVENT.c.revived_at.is_(None), EVENT.c.revived_at <= pause_over),
    )
    fresh: dict[str, Any] = {
        "state": enters(Move.REVIVE).value,
        "due_at": now,
        "revived_at": now,
        "finished_at": sa.null(),
        "attempts": 0,
        "crashes": 0,
        "nudged_at": sa.null(),
        "nudges": 0,
        "reason": "A new delivery revived it.",
    }
    return counts | {name: sa.case((revives, value), else_=EVENT.c[name]) for name, value in fresh.items()}


_RETURNED = (
    EVENT.c.id,
    EVENT.c.source,
    EVENT.c.event_id,
    EVENT.c.state,
    EVENT.c.body_hash,
    EVENT.c.duplicates,
    # Not as IS NULL: SQLite 3.40 returns false for that, always.
    sa.func.length(EVENT.c.headers).label("headers"),
)


_COUNT_ONE = (
    sa.update(EVENT)
    .where(EVENT.c.source == sa.bindparam("key_source"), EVENT.c.event_id == sa.bindparam("key_id"))
    .values(
        _counted(
            sa.bindparam("now", type_=UTCDateTime()),
            sa.bindparam("pause_over", type_=UTCDateTime()),
            sa.bindparam("more"),
        )
    )
    .returning(*_RETURNED)
)


def _count_all() -> sa.Update:
    arrays = [sa.bindparam(name, type_=sa.ARRAY(sa.Text)) for name in ("sources", "ids")]
    given = sa.func.unnest(*arrays, sa.bindparam("counts", type_=sa.ARRAY(sa.Integer)))
    shape = sa.column("source", sa.Text), sa.column("event_id", sa.Text), sa.column("more", sa.Integer)
    wanted = given.table_valued(*shape, name="wanted").render_derived()
    same = sa.and_(EVENT.c.source == wanted.c.source, EVENT.c.event_id == wanted.c.event_id)
    # Rows are locked in the order of their keys, as in every other transaction, or two would deadlock.
    order = EVENT.c.source.collate("C"), EVENT.c.event_id.collate("C")
    chosen = sa.select(EVENT.c.id, wanted.c.more).join_from(wanted, EVENT, same).order_by(*order)
    locked = chosen.with_for_update(of=EVENT).cte("locked")
    change = _counted(MOMENT, MOMENT - sa.literal(REVIVAL_PAUSE), locked.c.more)
    return sa.update(EVENT).where(EVENT.c.id == locked.c.id).values(change).returning(*_RETURNED)


_COUNT_ALL = _count_all()


def _keep(store: Store) -> sa.Insert:
    insert = insert_for(store, DUPLICATE)
    names = ("event", "slot", "address")
    if store.sqlite:
        slot = {name: sa.bindparam(name, type_=DUPLICATE.c[name].type) for name in names}
        keyed = insert.values(**slot, at=store.clock)
    else:
        arrays = [sa.bindparam(name, type_=sa.ARRAY(DUPLICATE.c[name].type)) for name in names]
        shape = [sa.column(name, DUPLICATE.c[name].type) for name in names]
        slots = sa.func.unnest(*arrays).table_valued(*shape, name="slots").render_derived()
        keyed = insert.from_select([*names, "at"], sa.select(*slots.c, MOMENT))
    newer = {"at": insert.excluded.at, "address": insert.excluded.address}
    return keyed.on_conflict_do_update(index_elements=["event", "slot"], set_=newer)
