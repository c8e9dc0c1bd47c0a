"""Ids outside the signed bytes: a captured body that comes again under another id is marked, or parked."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol
from uuid import UUID

from sqlalchemy import Connection, Row, func, select, text, update

from receiver.ledger.models import EVENT
from receiver.ledger.states import State
from receiver.ledger.store import Store

Key = tuple[str, str]


class Signed(Protocol):
    """The part of a delivery that this looks at."""

    @property
    def source(self) -> str: ...  # noqa: D102
    @property
    def type(self) -> str: ...  # noqa: D102
    @property
    def key(self) -> Key: ...  # noqa: D102
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


def flag_replays(connection: Connection, new: Sequence[Signed], rows: Mapping[Key, Row[Any]]) -> set[UUID]:
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
