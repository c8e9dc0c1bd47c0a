"""Sends of a call: begun under the locked event before the first byte; recorded by the send's own id.

`begin_send` decides whether a request may go out now, and commits the send before it does. `record_response`
writes down what came back, whoever holds the claim by then.
"""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from sqlalchemy import Connection, Row, Select, Table, Update, Uuid, bindparam, func, select, update
from sqlalchemy.exc import IntegrityError

from receiver.ledger.counters import CounterKind, bump
from receiver.ledger.lease import Claim, lock_alive
from receiver.ledger.states import ENDS_CALL, CallState, Move, Protection, SendOutcome, State, enters
from receiver.ledger.store import Store
from receiver.ledger.tables import CALL, EVENT, SEND
from receiver.ledger.text import plain, uuid7

# How much longer than a send its lease lasts: the response must still be written down.
SLACK = timedelta(seconds=5)

# A replay with a status of 400 or more is one of the dialects that mark replays so: handlers see a 200.
OK, CLIENT_ERROR = 200, 400

TOO_LONG = "It happened, but its answer is too long to be kept: say that it happened, with the part you need."

LATE = "The answer to its open call came late."


@dataclass(frozen=True)
class SendPolicy:
    """What one API's configuration says of its sends."""

    deadline: timedelta
    """How long one send may take, from the first byte to the last of its response."""
    key_life: timedelta
    """How long the API remembers a key, from the first send."""
    key_margin: timedelta
    """How long before the end of its life a key counts as forgotten."""
    settle_delay: timedelta
    """How long after a send's deadline the API may still be working on it."""
    credentials: tuple[str, ...]
    """HMACs of the present credential under each secret key, the current one first."""
    one_at_a_time: bool = False
    """Whether two copies must not be under way at once: the API does not say what it does then."""


@dataclass(frozen=True)
class SendBegun:
    """The send is committed: write its first byte at once."""

    send: UUID


@dataclass(frozen=True)
class LeaseLost:
    """The claim's lease ran out, or another worker has taken the event over."""


@dataclass(frozen=True)
class SendTooEarly:
    """An earlier send may still be under way at the API."""

    delay: timedelta


@dataclass(frozen=True)
class CallNotPending:
    """The call cannot go out any more: it is parked, or has ended meanwhile."""

    state: CallState
    reason: str


# What `begin_send` decides: only after SendBegun may a byte leave.
SendDecision = SendBegun | LeaseLost | SendTooEarly | CallNotPending


@dataclass(frozen=True)
class SendContext:
    """What the ledger knows of a call at the moment when a response to one of its sends is recorded."""

    open_before: bool
    """Whether another send of this call may have been executed."""
    live: bool
    """Whether a key protects the call and its life, less the margin, is not over."""
    protection: Protection
    method: str
    path: str = ""
    """The URL's, without its query."""


@dataclass(frozen=True)
class Classification:
    """What a response, or its absence, means for its call and its send."""

    outcome: SendOutcome
    park: bool = False
    """Whether a person must look before anything is sent again."""
    open: bool = False
    """Whether this send may have been executed all the same."""
    retry_after: timedelta | None = None
    reason: str = ""
    """One sentence for people, without any of the response's body."""


# Classifies one response, given what the ledger knows and its time; pure.
Classifier = Callable[[SendContext, datetime], Classification]


@dataclass(frozen=True)
class StoredResponse:
    """A response as it is stored. `body` is None where it was too long, or erased since."""

    status: int
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    body: bytes | None = field(repr=False)


@dataclass(frozen=True)
class SendResult:
    """What came back. Without `send` no byte had left; without `response` none came."""

    send: UUID | None
    response: StoredResponse | None
    classify: Classifier
    policy: SendPolicy
    backoff: timedelta
    """The wait before the next send where the response names none."""


@dataclass(frozen=True)
class CallUpdate:
    """What became of the call: its state now, what the response meant, and the wait before its next send."""

    state: CallState
    classification: Classification
    delay: timedelta
    applied: bool = True
    """Whether this response decided the state; else it had been decided before."""


def begin_send(store: Store, held: Claim, call: UUID, policy: SendPolicy) -> SendDecision:
    """Record that a call's request goes out now, if claim, lease, key's life and credential allow it.

    The lease outlasts the send. While an earlier send is open, a resend is as safe as what protects it.
    """
    with store.write() as connection:
        event = lock_alive(store, connection, held)
        if event is None:
            return LeaseLost()
        row = connection.execute(select(CALL).where(CALL.c.id == call)).one()
        if row.state != CallState.PENDING:
            return CallNotPending(CallState(row.state), row.reason or "")
        # The first send is always safe; only while another one may have been executed is a copy a risk.
        until = open_until(connection, call)
        obstacle = _obstacle(row, policy, event.now) if until else None
        if obstacle:
            end = {"state": CallState.PARKED, "reason": obstacle, "ended_at": event.now}
            connection.execute(update(CALL).where(CALL.c.id == call).values(**end))
            return CallNotPending(CallState.PARKED, obstacle)
        if until and policy.one_at_a_time and until + policy.settle_delay > event.now:
            return SendTooEarly(until + policy.settle_delay - event.now)
        return SendBegun(_insert_send(connection, held, row, policy, event))


def record_response(store: Store, held: Claim, call: UUID, result: SendResult) -> CallUpdate:
    """Write down what came back to one send of a call.

    A success, a replay or a stored response closes every send of the call. A late one also wakes an event
    that was parked for this call.
    """
    lock, read = store.built(_lock_event), store.built(_read_call)
    with store.write() as connection:
        # Event before call: the order in which every transaction locks them.
        connection.execute(lock, {"event_": held.event})
        row = connection.execute(read, {"call_": call, "send_": result.send} | store.moment()).one()
        protection, policy = Protection(row.protection), result.policy
        lives = row.expires_at is not None and row.expires_at - policy.key_margin > row.now
        context = SendContext(
            open_before=row.open_before is not None,
            live=lives and protection == Protection.KEYED,
            protection=protection,
            method=row.method,
            path=urlsplit(row.url).path,
        )
        classification = result.classify(context, row.now)
        final = ENDS_CALL.get(classification.outcome)
        response = result.response
        # It happened, but its response was too long to keep: its sends stay open, and a person decides.
        unreadable = final == CallState.SUCCEEDED and response is not None and response.body is None
        closes = final is not None and not unreadable
        stays_open = (
            (classification.open or unreadable) and not closes and row.state not in ENDS_CALL.values()
        )
        _end_send(store, connection, held, row, result, classification, stays_open=stays_open)
        if closes and row.open_before is not None:
            connection.execute(update(SEND).where(SEND.c.call == row.id).values(open=False))
        # Retry-After of 0 counts as none: it would be sent again as fast as a worker runs.
        delay = classification.retry_after or result.backoff
        until = open_until(connection, row.id) if policy.one_at_a_time and not closes else None
        if until:
            delay = max(delay, until + policy.settle_delay - row.now)
        state = _next_state(connection, row, final, unreadable=unreadable, park=classification.park)
        if state is not None:
            ended = state != CallState.PENDING
            change: dict[str, Any] = {
                "state_": state,
                "outcome_": classification.outcome,
                "reason_": TOO_LONG if unreadable else plain(classification.reason),
                "due_at_": None if ended else row.now + delay,
                "ended_at_": row.now if ended else None,
            }
            if response is not None:
                change["status_"] = status_for_handler(classification, response.status)
                change |= {"answer_headers_": json.dumps(response.headers), "answer_": response.body}
            _change_call(store, connection, row, change)
            if state in ENDS_CALL.values() and row.parked_call == row.id:
                # An event goes on that was parked for this call and for nothing else.
                mine = (EVENT.c.id == row.event, EVENT.c.state == State.PARKED, EVENT.c.parked_call == row.id)
                move = {"state": enters(Move.RESOLVE), "due_at": row.now, "parked_call": None, "reason": LATE}
                fresh = {"attempts": 0, "crashes": 0, "nudged_at": None, "nudges": 0}
                connection.execute(update(EVENT).where(*mine).values(**move, **fresh))
        # Last, since other transactions wait for these rows.
        bump(store, connection, {(CounterKind.CALL, row.api, str(classification.outcome)): 1})
        return CallUpdate(state or CallState(row.state), classification, delay, applied=state is not None)


def status_for_handler(classification: Classification, status: int) -> int:
    """Return the status that a handler sees: the original's, where a replay has a status of its own."""
    return OK if classification.outcome == SendOutcome.REPLAYED and status >= CLIENT_ERROR else status


def open_until(connection: Connection, call: UUID, but: UUID | None = None) -> datetime | None:
    """Return until when the last open send of a call may be under way; None when none is open."""
    mine = [SEND.c.call == call, SEND.c.open] + ([SEND.c.id != but] if but else [])
    found = select(SEND.c.sending_until).where(*mine).order_by(SEND.c.sending_until.desc()).limit(1)
    until: datetime | None = connection.execute(found).scalar()
    return until


def _obstacle(row: Row[Any], policy: SendPolicy, now: datetime) -> str | None:
    """Say why a call with an open send may not go out again; None if it may."""
    often = "once" if row.sends == 1 else f"{row.sends} times"
    sent = f"It went out {often}, and nobody knows whether it happened"
    if row.protection == Protection.UNPROTECTED:
        return f"{sent}; nothing protects it from happening twice."
    if row.protection == Protection.KEYED and row.expires_at - policy.key_margin <= now:
        return f"{sent}; its key is forgotten there at {row.expires_at:%Y-%m-%d %H:%M:%S} UTC at the latest."
    if row.credential not in policy.credentials:
        return f"{sent}; the credential was changed since, and under another one its key may mean nothing."
    return None


def _insert_send(
    connection: Connection, held: Claim, row: Row[Any], policy: SendPolicy, event: Row[Any]
) -> UUID:
    """Insert an open send and make the lease outlast it; return the send's id."""
    until = event.now + policy.deadline
    if event.lease_until < until + SLACK:
        longer = {"lease_until": until + SLACK}
        connection.execute(update(EVENT).where(EVENT.c.id == held.event).values(**longer))
    change = {
        "sends": row.sends + 1,
        "credential": policy.credentials[0],
        "quiet_until": until + policy.settle_delay,
    }
    if row.first_sent_at is None:
        # The key's life begins here, and no resend makes it longer.
        keyed = row.protection == Protection.KEYED
        change["first_sent_at"] = event.now
        change["expires_at"] = event.now + policy.key_life if keyed else None
    connection.execute(update(CALL).where(CALL.c.id == row.id).values(**change))
    send = uuid7()
    begun = {"id": send, "call": row.id, "number": row.sends + 1, "claim": held.token}
    connection.execute(SEND.insert().values(**begun, at=event.now, sending_until=until, open=True))
    return send


# Statements of a response are built once, as most sends have one: to build one costs as much as to run it.


def _lock_event(_store: Store) -> Select[Any]:
    return select(EVENT.c.id).where(EVENT.c.id == bindparam("event_", type_=Uuid())).with_for_update()


def _read_call(store: Store) -> Select[Any]:
    """Build the reading of a call, save its contents, with the last end of its other open sends."""
    send = bindparam("send_", type_=Uuid())
    others = (SEND.c.call == CALL.c.id, SEND.c.open, SEND.c.id.is_distinct_from(send))
    open_before = select(func.max(SEND.c.sending_until)).where(*others).scalar_subquery()
    facts = [
        column for column in CALL.c if column.name not in ("headers", "body", "answer", "answer_headers")
    ]
    columns = (*facts, EVENT.c.parked_call, store.clock.label("now"), open_before.label("open_before"))
    mine = CALL.c.id == bindparam("call_", type_=Uuid())
    return select(*columns).join_from(CALL, EVENT, EVENT.c.id == CALL.c.event).where(mine)


def _end_of_send(_store: Store) -> Update:
    return _setting(SEND, "ended_at", "outcome", "status", "reason", "open")


def _end_of_call(_store: Store) -> Update:
    return _setting(CALL, *_DECIDED)


def _response_of_call(_store: Store) -> Update:
    return _setting(CALL, *_DECIDED, "status", "answer_headers", "answer")


_DECIDED = ("state", "outcome", "reason", "due_at", "ended_at")


def _setting(table: Table, *names: str) -> Update:
    """Build an UPDATE of one row that sets these columns; parameters end with an underscore."""
    values = {name: bindparam(f"{name}_", type_=table.c[name].type) for name in names}
    return update(table).where(table.c.id == bindparam("id_", type_=Uuid())).values(**values)


def _end_send(
    store: Store,
    connection: Connection,
    held: Claim,
    row: Row[Any],
    result: SendResult,
    classification: Classification,
    *,
    stays_open: bool,
) -> None:
    """Write the end of one send; one that never left gets its row here, so that people see it."""
    end = {
        "ended_at": row.now,
        "outcome": classification.outcome,
        "status": result.response.status if result.response else None,
        "reason": plain(classification.reason),
        "open": stays_open,
    }
    if result.send is not None:
        parameters = {f"{name}_": value for name, value in end.items()} | {"id_": result.send}
        connection.execute(store.built(_end_of_send), parameters)
        return
    number = row.sends + 1
    begun = {"id": uuid7(), "call": row.id, "number": number, "claim": held.token}
    connection.execute(SEND.insert().values(**begun, **end, at=row.now, sending_until=row.now))
    connection.execute(update(CALL).where(CALL.c.id == row.id).values(sends=number))


def _next_state(
    connection: Connection, row: Row[Any], final: CallState | None, *, unreadable: bool, park: bool
) -> CallState | None:
    """Return the state that a response brings its call to; None when it changes nothing any more."""
    end = CallState.PARKED if unreadable else final
    match CallState(row.state):
        case CallState.PENDING:
            return end or (CallState.PARKED if park else CallState.PENDING)
        case CallState.PARKED | CallState.GIVEN_UP:
            return end
        case CallState.REPLACED if final == CallState.SUCCEEDED:
            # A replaced step may move, and another one may take its place.
            same = (CALL.c.position == row.position) | (CALL.c.step == row.step)
            mine = (CALL.c.event == row.event, CALL.c.generation == row.generation, same)
            successor = select(CALL.c.id).where(*mine, CALL.c.successor > row.successor).limit(1)
            return None if connection.execute(successor).first() else end
        case _:
            return None


def _change_call(store: Store, connection: Connection, row: Row[Any], change: dict[str, Any]) -> None:
    statement = store.built(_response_of_call if "status_" in change else _end_of_call)
    parameters = change | {"id_": row.id}
    # While it counted as replaced, another event's call may have taken its `once`.
    taken = row.once is not None and row.state == CallState.REPLACED
    try:
        with connection.begin_nested() if taken else nullcontext():
            connection.execute(statement, parameters)
    except IntegrityError:
        if not taken:
            raise
        connection.execute(statement.values(once=None), parameters)
