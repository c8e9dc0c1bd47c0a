"""Sending a call: marked under the locked event before the first byte; answered by the send's own id."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from sqlalchemy import Connection, Row, select, update
from sqlalchemy.exc import IntegrityError

from receiver.ledger.counters import CounterKind, bump
from receiver.ledger.lease import Claim, lock_alive
from receiver.ledger.states import (
    ENDS_CALL,
    CallState,
    Move,
    Protection,
    SendOutcome,
    State,
    enters,
)
from receiver.ledger.store import Store
from receiver.ledger.tables import CALL, EVENT, SEND
from receiver.ledger.text import plain, uuid7

SLACK = timedelta(seconds=5)
"""How much longer than a send its lease lasts: the answer must still be written down."""


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


SendDecision = SendBegun | LeaseLost | SendTooEarly | CallNotPending


def begin_send(store: Store, held: Claim, call: UUID, policy: SendPolicy) -> SendDecision:
    """Note that a call's request goes out now, if claim, lease, key's life and credential allow it.

    The lease outlasts the send. While an earlier send is open, a resend is as safe as what protects it.
    """
    with store.write() as connection:
        event = lock_alive(store, connection, held)
        if event is None:
            return LeaseLost()
        row = connection.execute(select(CALL).where(CALL.c.id == call)).one()
        if row.state != CallState.PENDING:
            return CallNotPending(CallState(row.state), row.reason or "")
        until = open_until(connection, call)
        obstacle = _obstacle(row, policy, event.now) if until else None
        if obstacle:
            end = {"state": CallState.PARKED, "reason": obstacle, "ended_at": event.now}
            connection.execute(update(CALL).where(CALL.c.id == call).values(**end))
            return CallNotPending(CallState.PARKED, obstacle)
        if until and policy.one_at_a_time and until + policy.settle_delay > event.now:
            return SendTooEarly(until + policy.settle_delay - event.now)
        return _begin(connection, held, row, policy, event)


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


def _begin(
    connection: Connection, held: Claim, row: Row[Any], policy: SendPolicy, event: Row[Any]
) -> SendBegun:
    until = event.now + policy.deadline
    if event.lease_until < until + SLACK:
        longer = {"lease_until": until + SLACK}
        connection.execute(update(EVENT).where(EVENT.c.id == held.event).values(**longer))
    first = row.first_sent_at is None
    keyed = row.protection == Protection.KEYED
    change = {
        "sends": row.sends + 1,
        "credential": policy.credentials[0],
        "quiet_until": until + policy.settle_delay,
        "first_sent_at": event.now if first else row.first_sent_at,
        "expires_at": (event.now + policy.key_life if keyed else None) if first else row.expires_at,
    }
    connection.execute(update(CALL).where(CALL.c.id == row.id).values(**change))
    send = {"id": uuid7(), "call": row.id, "number": row.sends + 1, "claim": held.token}
    connection.execute(SEND.insert().values(**send, at=event.now, sending_until=until, open=True))
    return SendBegun(send["id"])


def open_until(connection: Connection, call: UUID, but: UUID | None = None) -> datetime | None:
    """Return until when the last open send of a call may be under way; None when none is open."""
    mine = [SEND.c.call == call, SEND.c.open] + ([SEND.c.id != but] if but else [])
    found = select(SEND.c.sending_until).where(*mine).order_by(SEND.c.sending_until.desc()).limit(1)
    until: datetime | None = connection.execute(found).scalar()
    return until


# Recording what came back to a send, by the send's own id and whoever holds the claim.


TOO_LONG = "It happened, but its answer is too long to be kept: say that it happened, with the part you need."

OK, CLIENT_ERROR = 200, 400

LATE = "The answer to its open call came late."


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


Classifier = Callable[[SendContext, datetime], Classification]
"""Classifies one response, given what the ledger knows and its time; pure."""


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


def record_response(store: Store, held: Claim, call: UUID, result: SendResult) -> CallUpdate:
    """Write down what came back to one send of a call.

    A success, a replay or a stored answer closes every send of the call. A late one also wakes an event that
    was parked for this call.
    """
    with store.write() as connection:
        # Event before call, as everybody locks them.
        connection.execute(select(EVENT.c.id).where(EVENT.c.id == held.event).with_for_update())
        row = connection.execute(select(CALL, store.now().label("now")).where(CALL.c.id == call)).one()
        recording = _Recording(connection, row, result)
        recording.note(held)
        done = recording.end()
        bump(store, connection, {(CounterKind.CALL, row.api, str(done.classification.outcome)): 1})
        return done


def status_for_handler(verdict: Classification, status: int) -> int:
    """Return the status that a handler sees: that of the original, where a replay is told by its own."""
    return OK if verdict.outcome == SendOutcome.REPLAYED and status >= CLIENT_ERROR else status


class _Recording:
    """One answer, inside one transaction that holds the event."""

    def __init__(self, connection: Connection, row: Row[Any], result: SendResult) -> None:
        self.connection, self.row, self.result = connection, row, result
        self.now: datetime = row.now
        self.verdict = result.classify(self._standing(), self.now)

    def _standing(self) -> SendContext:
        row, protection = self.row, Protection(self.row.protection)
        lives = row.expires_at is not None and row.expires_at - self.result.policy.key_margin > self.now
        others = open_until(self.connection, row.id, but=self.result.send)
        live = lives and protection == Protection.KEYED
        return SendContext(others is not None, live, protection, row.method, urlsplit(row.url).path)

    def note(self, held: Claim) -> None:
        """Write the send's own end, and close every send when the answer speaks for all."""
        answer, verdict = self.result.response, self.verdict
        end = {
            "ended_at": self.now,
            "outcome": verdict.outcome,
            "status": answer.status if answer else None,
            "reason": plain(verdict.reason),
            "open": (verdict.open or self._is_lost) and self.row.state not in ENDS_CALL.values(),
        }
        if self.result.send is None:
            self._note_unsent(held, end)
        else:
            self.connection.execute(update(SEND).where(SEND.c.id == self.result.send).values(**end))
        if verdict.outcome in ENDS_CALL and not self._is_lost:
            self.connection.execute(update(SEND).where(SEND.c.call == self.row.id).values(open=False))

    def _note_unsent(self, held: Claim, end: dict[str, Any]) -> None:
        number = self.row.sends + 1
        begun = {"id": uuid7(), "call": self.row.id, "number": number, "claim": held.token}
        self.connection.execute(SEND.insert().values(**begun, **end, at=self.now, sending_until=self.now))
        self._change(sends=number)

    def end(self) -> CallUpdate:
        """Bring the call where the answer puts it, if it is not at an end already."""
        delay, state = self._delay(), self._next()
        if state is None:
            return CallUpdate(CallState(self.row.state), self.verdict, delay, applied=False)
        ended = state != CallState.PENDING
        change: dict[str, Any] = {
            "state": state,
            "outcome": self.verdict.outcome,
            "reason": TOO_LONG if self._is_lost else plain(self.verdict.reason),
            "due_at": None if ended else self.now + delay,
            "ended_at": self.now if ended else None,
        }
        self._move(**change, **self._kept())
        if state in ENDS_CALL.values():
            self._wake()
        return CallUpdate(state, self.verdict, delay)

    def _delay(self) -> timedelta:
        asked, policy = self.verdict.retry_after, self.result.policy
        # One that asks for it at once, time and again, would be asked as fast as a worker runs.
        delay = asked or self.result.backoff
        until = open_until(self.connection, self.row.id)
        quiet = until + policy.settle_delay - self.now if until and policy.one_at_a_time else timedelta(0)
        return max(delay, quiet)

    def _kept(self) -> dict[str, Any]:
        answer = self.result.response
        if answer is None:
            return {}
        status = status_for_handler(self.verdict, answer.status)
        return {"status": status, "answer_headers": json.dumps(answer.headers), "answer": answer.body}

    def _next(self) -> CallState | None:
        """Return the state that the answer brings the call to; None when it changes nothing any more."""
        final = ENDS_CALL.get(self.verdict.outcome)
        if self._is_lost:
            final = CallState.PARKED
        match CallState(self.row.state):
            case CallState.PENDING:
                return final or (CallState.PARKED if self.verdict.park else CallState.PENDING)
            case CallState.PARKED | CallState.GIVEN_UP:
                return final
            case CallState.REPLACED if self._is_success and not self._has_successor():
                return final
            case _:
                return None

    @property
    def _is_success(self) -> bool:
        return ENDS_CALL.get(self.verdict.outcome) == CallState.SUCCEEDED

    @property
    def _is_lost(self) -> bool:
        """Whether it happened, but nobody knows with what answer: its sends stay open."""
        answer = self.result.response
        return self._is_success and answer is not None and answer.body is None

    def _has_successor(self) -> bool:
        row = self.row
        mine = (CALL.c.event == row.event, CALL.c.generation == row.generation)
        # A replaced step may move, and another one may take its place.
        same = (CALL.c.position == row.position) | (CALL.c.step == row.step)
        later = select(CALL.c.id).where(*mine, same, CALL.c.successor > row.successor)
        return self.connection.execute(later.limit(1)).first() is not None

    def _wake(self) -> None:
        """Let an event go on that was parked for this call and for nothing else."""
        row = self.row
        mine = (EVENT.c.id == row.event, EVENT.c.state == State.PARKED, EVENT.c.parked_call == row.id)
        change = {"state": enters(Move.RESOLVE), "due_at": self.now, "parked_call": None, "reason": LATE}
        fresh = {"attempts": 0, "crashes": 0, "nudged_at": None, "nudges": 0}
        self.connection.execute(update(EVENT).where(*mine).values(**change, **fresh))

    def _move(self, **values: Any) -> None:
        """Change the call; one that counted as replaced may have lost its `once` to another event's."""
        try:
            with self.connection.begin_nested():
                self._change(**values)
        except IntegrityError:
            self._change(**values, once=None)

    def _change(self, **values: Any) -> None:
        self.connection.execute(update(CALL).where(CALL.c.id == self.row.id).values(**values))
