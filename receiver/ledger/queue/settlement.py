"""Settling: how attempts end. One verb for one or many.

Most attempts finish, and those share one set of statements. Any other outcome, and that of an attempt with an
unfinished call, takes some statements of its own in the same transaction.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from receiver.ledger.calls import no_unfinished_calls, outcome_given_calls, replace_rejected
from receiver.ledger.counters import CounterKind, add_selected, bump, slot_of
from receiver.ledger.errors import NotAllowed
from receiver.ledger.lease import Claim, Outcome, claim_guard
from receiver.ledger.states import Move, State, enters, leaves
from receiver.ledger.store import Store
from receiver.ledger.tables import ATTEMPT, EVENT
from receiver.ledger.text import plain

# The outcome of a handler that returned: attempts with this one are settled together.
FINISHED = Outcome(Move.FINISH)

# Moves after which the attempt does not count against the handler's limit.
GIVES_ATTEMPT_BACK = (Move.RELEASE, Move.IGNORE, Move.CALL_LATER)

# Moves that a person should hear of, and the counters that alerts read.
ALERTED = {Move.PARK: CounterKind.PARKED, Move.GIVE_UP: CounterKind.DEAD}


def settle(store: Store, ended: Sequence[tuple[Claim, Outcome]]) -> set[UUID]:
    """End attempts of different events, all in one transaction; return the events that were settled.

    The others were taken over, or are to be released while a send is under way. Unfinished calls decide
    before the handler does: with one of them open an event is not done, whatever its handler returned.
    Raises NotAllowed for a move that does not start from processing.
    """
    for _, outcome in ended:
        if State.PROCESSING not in leaves(outcome.move):
            raise NotAllowed(f"{outcome.move!r} does not end an attempt.")
    if not ended:
        return set()
    finished = [held for held, outcome in ended if outcome == FINISHED]
    if len(finished) == len(ended) and not store.sqlite:
        with suppress(_SomeRemain):
            return _finish_all(store, finished)
    with store.write() as connection:
        # The statement that finishes locks its events in order, but the others are locked one by one below:
        # in another order than `record` locks its rows, the two would deadlock.
        if len(finished) < len(ended) > 1 and not store.sqlite:
            connection.execute(store.built(_lock), _arrays([held for held, _ in ended]))
        settled = _finish(store, connection, finished)
        counts = Counter(
            (CounterKind.ATTEMPT, held.source, str(Move.FINISH)) for held in finished if held.event in settled
        )
        for held, outcome in ended:
            if held.event in settled:
                continue
            # A handler that returned comes here too, when its claim is lost or a call is unfinished.
            final = outcome_given_calls(store, connection, held, outcome)
            if final is not None:
                _end(store, connection, held, final)
                settled.add(held.event)
                counts[CounterKind.ATTEMPT, held.source, str(final.move)] += 1
                if final.move in ALERTED:
                    counts[ALERTED[final.move], held.source, held.type] += 1
        # Last, since other transactions wait for these rows.
        bump(store, connection, counts)
    return settled


class _SomeRemain(Exception):
    """Some of the events could not be finished: nothing was, and each is looked at."""


def _finish_all(store: Store, claims: Sequence[Claim]) -> set[UUID]:
    """Make events done, end their attempts and count them, in one statement of PostgreSQL."""
    parameters = _arrays(claims) | store.moment() | {"slot": slot_of(store)}
    with store.write() as connection:
        events = set(connection.execute(store.built(_finish_all_statement), parameters).scalars())
        if len(events) < len(claims):
            # What else is counted comes before these counts: the order in which all lock the rows.
            raise _SomeRemain
    return events


def _finish_all_statement(store: Store) -> sa.Select[Any]:
    finish, end = _finish_values(store)
    locked = _lock(store).cte("locked")
    whole = finish.where(EVENT.c.id == locked.c.id, no_unfinished_calls())
    done = whole.returning(EVENT.c.id, EVENT.c.source, EVENT.c.claim).cte("done")
    ended = end.where(ATTEMPT.c.event == done.c.id, ATTEMPT.c.claim == done.c.claim).cte("ended")
    kind, what = sa.literal(CounterKind.ATTEMPT.value), sa.literal(Move.FINISH.value)
    columns = kind.label("kind"), done.c.source.label("name"), what.label("what")
    counts = sa.select(*columns, sa.func.count().label("count")).group_by(done.c.source)
    return sa.select(done.c.id).add_cte(ended, add_selected(store, counts).cte("counted"))


def _finish(store: Store, connection: sa.Connection, claims: Sequence[Claim]) -> set[UUID]:
    """Make events done and end their attempts; leave those that are lost or have an unfinished call."""
    if not claims:
        return set()
    finish, end = store.built(_finish_statements)
    moment = store.moment()
    if store.sqlite:
        each: list[dict[str, Any]] = [{"event_": held.event, "token": held.token} | moment for held in claims]
        done = [parameters for parameters in each if connection.execute(finish, parameters).rowcount]
        if done:
            connection.execute(end, done)
        return {parameters["event_"] for parameters in done}
    events = set(connection.execute(finish, _arrays(claims) | moment).scalars())
    if events:
        connection.execute(end, _arrays([held for held in claims if held.event in events]) | moment)
    return events


def _finish_values(store: Store) -> tuple[sa.Update, sa.Update]:
    """Build what finishes events and what ends their attempts, without saying of which."""
    finish = sa.update(EVENT).values(
        state=enters(Move.FINISH),
        finished_at=store.clock,
        lease_until=None,
        nudged_at=None,
        nudges=0,
        reason=None,
    )
    end = sa.update(ATTEMPT).values(ended_at=store.clock, outcome=Move.FINISH.value, reason=None, error=None)
    return finish, end


def _finish_statements(store: Store) -> tuple[sa.Update, sa.Update]:
    """Build what finishes events and what ends their attempts: many at once, on SQLite one at a time."""
    finish, end = _finish_values(store)
    if store.sqlite:
        event, token = sa.bindparam("event_", type_=sa.Uuid()), sa.bindparam("token", type_=sa.Integer())
        return (
            finish.where(_held(event, token), no_unfinished_calls()),
            end.where(ATTEMPT.c.event == event, ATTEMPT.c.claim == token),
        )
    claims, locked = _claims(), _lock(store).cte("locked")
    return (
        finish.where(EVENT.c.id == locked.c.id, no_unfinished_calls()).returning(EVENT.c.id),
        end.where(ATTEMPT.c.event == claims.c.event, ATTEMPT.c.claim == claims.c.token),
    )


def _lock(_store: Store) -> sa.Select[Any]:
    """Build what locks the events that are still held, in the order in which `record` locks its rows."""
    claims = _claims()
    held = sa.select(EVENT.c.id).join_from(claims, EVENT, _held(claims.c.event, claims.c.token))
    return held.order_by(EVENT.c.source.collate("C"), EVENT.c.event_id.collate("C")).with_for_update(of=EVENT)


def _held(event: Any, token: Any) -> Any:
    return sa.and_(EVENT.c.id == event, EVENT.c.claim == token, EVENT.c.state == State.PROCESSING)


def _claims() -> sa.FromClause:
    """Return PostgreSQL's table of the claims in `:events` and `:tokens`."""
    arrays = (
        sa.bindparam("events", type_=sa.ARRAY(sa.Uuid)),
        sa.bindparam("tokens", type_=sa.ARRAY(sa.Integer)),
    )
    columns = sa.column("event", sa.Uuid), sa.column("token", sa.Integer)
    return sa.func.unnest(*arrays).table_valued(*columns, name="claims").render_derived()


def _arrays(claims: Sequence[Claim]) -> dict[str, Any]:
    return {"events": [held.event for held in claims], "tokens": [held.token for held in claims]}


def _end(store: Store, connection: sa.Connection, held: Claim, outcome: Outcome) -> None:
    """End one attempt of an event that this transaction has locked."""
    state = enters(outcome.move)
    # A traceback quotes what the sender wrote; a text that cannot be stored must not keep the event held.
    reason, error = (None if text is None else plain(text) for text in (outcome.reason, outcome.error))
    change: dict[str, Any] = {
        "state": state,
        "lease_until": None,
        "nudged_at": None,
        "nudges": 0,
        "reason": reason,
    }
    if state == State.WAITING:
        change["due_at"] = store.after(outcome.delay)
    if state in (State.DONE, State.DEAD, State.IGNORED):
        change["finished_at"] = store.now()
    if outcome.move == Move.PARK:
        change["parked_call"] = outcome.call
    if outcome.move in GIVES_ATTEMPT_BACK:
        change["attempts"] = EVENT.c.attempts - 1
    connection.execute(sa.update(EVENT).where(*claim_guard(held)).values(**change))
    # The next attempt sends anew what certainly did not happen, such as a call with a wrong credential.
    if outcome.call and outcome.move == Move.RETRY_LATER:
        replace_rejected(connection, outcome.call)
    attempt = sa.update(ATTEMPT).where(ATTEMPT.c.event == held.event, ATTEMPT.c.claim == held.token)
    end = {"ended_at": store.now(), "outcome": outcome.move, "reason": reason, "error": error}
    connection.execute(attempt.values(**end))
