"""Finishing several attempts in one transaction: what most of them end with, when handlers are quick."""

from collections import Counter
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    FromClause,
    Integer,
    Update,
    Uuid,
    and_,
    bindparam,
    column,
    exists,
    func,
    select,
    true,
    update,
)
from sqlmodel import UTCDateTime

from receiver.ledger.calls import none_unfinished, outcome_given_calls, replace_rejected
from receiver.ledger.counters import CounterKind, bump
from receiver.ledger.errors import NotAllowed
from receiver.ledger.lease import Claim, Outcome, claim_guard
from receiver.ledger.states import UNFINISHED_CALLS, Move, State, enters, leaves
from receiver.ledger.store import MOMENT, Store
from receiver.ledger.tables import ATTEMPT, CALL, EVENT
from receiver.ledger.text import plain


def finish_several(store: Store, claims: Sequence[Claim]) -> set[UUID]:
    """Settle attempts whose handlers returned; return the events that are done now.

    Those that were taken over, or have an unfinished call, are left to `settle`, one by one.
    """
    if not claims:
        return set()
    with store.write() as connection:
        finish = _one_by_one if store.sqlite else _together
        done = finish(store, connection, claims)
        ended = (
            (CounterKind.ATTEMPT, held.source, str(Move.FINISH)) for held in claims if held.event in done
        )
        bump(store, connection, Counter(ended))
        return done


def _one_by_one(store: Store, connection: Connection, claims: Sequence[Claim]) -> set[UUID]:
    moment = store.moment()
    done = [
        held
        for held in claims
        if connection.execute(_FINISH_ONE, {"event_": held.event, "token": held.token} | moment).rowcount
    ]
    if done:
        rows = [{"event_": held.event, "token": held.token} | moment for held in done]
        connection.execute(_END_ONE, rows)
    return {held.event for held in done}


def _together(store: Store, connection: Connection, claims: Sequence[Claim]) -> set[UUID]:
    moment = store.moment()
    given = {"events": [held.event for held in claims], "tokens": [held.token for held in claims]}
    done = connection.execute(_FINISH_ALL, given | moment).all()
    if done:
        ended = {"events": [row.id for row in done], "tokens": [row.claim for row in done]}
        connection.execute(_END_ALL, ended | moment)
    return {row.id for row in done}


def _given() -> FromClause:
    arrays = bindparam("events", type_=ARRAY(Uuid)), bindparam("tokens", type_=ARRAY(Integer))
    shape = column("event", Uuid), column("token", Integer)
    return func.unnest(*arrays).table_valued(*shape, name="given").render_derived()


def _finishable(event: Any, token: Any) -> Any:
    mine = and_(CALL.c.event == EVENT.c.id, CALL.c.generation == EVENT.c.generation)
    unfinished = exists().where(mine, CALL.c.state.in_(UNFINISHED_CALLS))
    held = and_(EVENT.c.id == event, EVENT.c.claim == token, EVENT.c.state == State.PROCESSING)
    return and_(held, ~unfinished)


def _done(now: Any) -> dict[str, Any]:
    quiet = {"lease_until": None, "nudged_at": None, "nudges": 0, "reason": None}
    return {"state": enters(Move.FINISH), "finished_at": now, **quiet}


def _ended(now: Any) -> dict[str, Any]:
    return {"ended_at": now, "outcome": Move.FINISH.value, "reason": None, "error": None}


def _finish_one() -> tuple[Update, Update]:
    event, token = bindparam("event_", type_=Uuid()), bindparam("token", type_=Integer())
    now = bindparam("now", type_=UTCDateTime())
    finish = update(EVENT).where(_finishable(event, token)).values(_done(now))
    mine = and_(ATTEMPT.c.event == event, ATTEMPT.c.claim == token)
    return finish, update(ATTEMPT).where(mine).values(_ended(now))


def _finish_all() -> tuple[Update, Update]:
    given = _given()
    # In the order in which `record` takes its rows, else the two deadlock.
    order = EVENT.c.source.collate("C"), EVENT.c.event_id.collate("C")
    ready = select(EVENT.c.id).join_from(given, EVENT, _finishable(given.c.event, given.c.token))
    locked = ready.order_by(*order).with_for_update(of=EVENT).cte("locked")
    shown = EVENT.c.id, EVENT.c.claim
    finish = update(EVENT).where(EVENT.c.id == locked.c.id).values(_done(MOMENT)).returning(*shown)
    mine = and_(ATTEMPT.c.event == given.c.event, ATTEMPT.c.claim == given.c.token)
    return finish, update(ATTEMPT).where(mine).values(_ended(MOMENT))


_FINISH_ONE, _END_ONE = _finish_one()

_FINISH_ALL, _END_ALL = _finish_all()


# The claim protocol: a lease, a fencing token, and guarded UPDATEs. Zero rows is a normal outcome.


UNCOUNTED = (Move.RELEASE, Move.IGNORE, Move.CALL_LATER)
"""Ends that give the attempt back."""

STUCK = {Move.PARK: CounterKind.PARKED, Move.GIVE_UP: CounterKind.DEAD}
"""Ends that a person should hear of."""

FINAL = (State.DONE, State.DEAD, State.IGNORED)


def settle(store: Store, held: Claim, end: Outcome) -> bool:
    """End an attempt with a move of the table; False when someone else took the event over.

    Its unfinished calls decide before the handler does: with one of them open it is not done, whatever the
    handler returned. Raises NotAllowed for a move that does not start from processing.
    """
    if State.PROCESSING not in leaves(end.move):
        raise NotAllowed(f"{end.move!r} does not end an attempt.")
    with store.write() as connection:
        if end.move == Move.FINISH and _settle(store, connection, held, end, none_unfinished(held)):
            return True
        real = outcome_given_calls(store, connection, held, end)
        return real is not None and _settle(store, connection, held, real, true())


def _settle(
    store: Store, connection: Connection, held: Claim, end: Outcome, guard: ColumnElement[bool]
) -> bool:
    # A traceback quotes what the sender wrote; a text that cannot be stored must not keep the event held.
    reason, error = (None if text is None else plain(text) for text in (end.reason, end.error))
    change = _settlement(store, end) | {"reason": reason}
    if not connection.execute(update(EVENT).where(*claim_guard(held), guard).values(**change)).rowcount:
        return False
    if end.call and end.move == Move.RETRY_LATER:
        replace_rejected(connection, end.call)
    story = {"ended_at": store.now(), "outcome": end.move, "reason": reason, "error": error}
    mine = (ATTEMPT.c.event == held.event, ATTEMPT.c.claim == held.token)
    connection.execute(update(ATTEMPT).where(*mine).values(**story))
    counts = {(CounterKind.ATTEMPT, held.source, str(end.move)): 1}
    if stuck := STUCK.get(end.move):
        counts[stuck, held.source, held.type] = 1
    bump(store, connection, counts)
    return True


def _settlement(store: Store, end: Outcome) -> dict[str, Any]:
    state = enters(end.move)
    change: dict[str, Any] = {"state": state, "lease_until": None, "nudged_at": None, "nudges": 0}
    if state == State.WAITING:
        change["due_at"] = store.after(end.delay)
    if state in FINAL:
        change["finished_at"] = store.now()
    if end.move == Move.PARK:
        change["parked_call"] = end.call
    if end.move in UNCOUNTED:
        change["attempts"] = EVENT.c.attempts - 1
    return change
