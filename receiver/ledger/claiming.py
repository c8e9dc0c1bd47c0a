"""The statements of a claim, built once: they run for every event, and to build them costs as much again."""

from datetime import timedelta
from typing import Any

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    Insert,
    Interval,
    Row,
    Text,
    Uuid,
    and_,
    bindparam,
    func,
    select,
    update,
)
from sqlalchemy.sql.dml import ReturningUpdate
from sqlmodel import UTCDateTime

from receiver.ledger.claimed import Claim
from receiver.ledger.models import ATTEMPT, EVENT
from receiver.ledger.states import Move, enters
from receiver.ledger.store import Store


def claiming(store: Store, which: ColumnElement[bool], due: ColumnElement[bool]) -> ReturningUpdate[Any]:
    """Return the statement that claims what is chosen, if it is due; `terms` has its parameters."""
    until: Any = bindparam("until", type_=UTCDateTime())
    if not store.sqlite:
        until = store.clock + bindparam("lease", type_=Interval())
    change = {
        "state": enters(Move.CLAIM),
        "lease_until": until,
        "claim": EVENT.c.claim + 1,
        "attempts": EVENT.c.attempts + 1,
    }
    return update(EVENT).where(which, due).values(**change).returning(*EVENT.c)


def terms(store: Store, lease: timedelta) -> dict[str, Any]:
    """Return the parameters of a claim that begins now."""
    moment = store.moment()
    return moment | ({"until": moment["now"] + lease} if store.sqlite else {"lease": lease})


def beginning(store: Store) -> Insert:
    """Return the statement that begins an attempt for each of the events `ids`, all just claimed."""
    shown = EVENT.c.id, EVENT.c.claim, EVENT.c.generation, EVENT.c.attempts
    told = store.clock, bindparam("worker_", type_=Text())
    mine: ColumnElement[bool] = EVENT.c.id.in_(bindparam("ids", expanding=True))
    if not store.sqlite:
        mine = EVENT.c.id == func.any(bindparam("ids", type_=ARRAY(Uuid)))
    names = ["event", "claim", "generation", "number", "started_at", "worker"]
    return ATTEMPT.insert().from_select(names, select(*shown, *told).where(mine))


def claimed(connection: Connection, row: Row[Any]) -> Claim:
    """Return what a worker holds of a row that it just claimed."""
    return Claim(
        event=row.id,
        token=row.claim,
        source=row.source,
        event_id=row.event_id,
        type=row.type,
        generation=row.generation,
        attempt=row.attempts,
        created_at=row.created_at,
        received_at=row.received_at,
        body=row.body,
        headers=row.headers or "{}",
        content_type=row.content_type,
        traceparent=row.traceparent,
        tried=row.claim > 1 and _tried(connection, row),
    )


def _tried(connection: Connection, row: Row[Any]) -> bool:
    earlier = and_(ATTEMPT.c.event == row.id, ATTEMPT.c.claim < row.claim)
    handled = ATTEMPT.c.outcome.is_distinct_from(Move.IGNORE)
    return connection.execute(select(ATTEMPT.c.claim).where(earlier, handled).limit(1)).first() is not None
