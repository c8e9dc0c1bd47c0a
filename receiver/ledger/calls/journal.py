"""The journal: a call's row, with key and exact request, is committed before its first byte leaves.

`plan` finds or inserts the call that a handler makes at a position of its attempt; `begin_first_send` inserts
one that is certainly new, and begins its send in the same transaction. `compute_once` keeps a
value that a handler computes once for a generation. A call with `once` is made once for all events of an API
that name it so: the database decides by which event, and the others follow that call.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    Interval,
    Row,
    Select,
    Uuid,
    bindparam,
    cast,
    func,
    literal,
    select,
    true,
    update,
)
from sqlalchemy.exc import IntegrityError

from receiver.ledger.calls.outcome import is_last
from receiver.ledger.calls.sends import SLACK, LeaseLost, SendBegun, SendPolicy, StoredResponse
from receiver.ledger.lease import Claim, lock_alive
from receiver.ledger.states import COSTS_NO_ATTEMPT, CallState, Protection, SendOutcome, State
from receiver.ledger.store import Store
from receiver.ledger.tables import CALL, EVENT, SEND, VALUE, insert_for
from receiver.ledger.text import uuid7

# States of a call that never happened, so that another event may use its `once`.
NEVER_EXECUTED = (CallState.REJECTED, CallState.REPLACED)

RESPONSE_ERASED = "Its answer is not kept any more: say that it happened, with the part you need."

# The advice when the call that the handler no longer makes has ended, so that nobody can resolve it.
RESTORE_ORDER = "Nothing was sent: let it make the calls in their first order and retry, or rerun the event."

# Makes the key of a step's n-th successor; None where no key protects the call.
MakeKey = Callable[[int], str | None]


@dataclass(frozen=True)
class CallRequest:
    """One call as a handler asks for it now. `headers` holds neither credential nor key."""

    position: int
    """Which of its attempt's calls it is, counted from 0."""
    step: str
    api: str
    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    fingerprint: str
    protection: Protection
    give_up_after: timedelta
    """How long it may be put off before it parks for a person."""
    once: str | None = None
    """The name under which all events of this API share one call."""
    id: UUID = field(default_factory=uuid7)
    """The id of the call's row, if this request is the first of its place."""


@dataclass(frozen=True)
class PlannedCall:
    """A call as it stands in the ledger. `delay` is how long it must not go out yet."""

    id: UUID
    step: str
    state: CallState
    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(repr=False)
    key: str | None = field(repr=False)
    protection: Protection
    sends: int
    outcome: SendOutcome | None
    reason: str | None
    delay: timedelta
    response: StoredResponse | None = field(repr=False)
    handler_changed: str | None = None
    """Why the handler is not the one that began this generation; nothing may be sent then."""
    waits_for_other: bool = False
    """Whether another event's call with the same `once` is unfinished."""
    tried_for: timedelta = timedelta(0)
    """How long ago it was first tried, or tried anew by a person."""


def plan(store: Store, held: Claim, request: CallRequest, make_key: MakeKey) -> PlannedCall | None:
    """Find or insert a call of an attempt; None when the claim is lost.

    At each position, every attempt of a generation asks for the same step with the same bytes: else the call
    parks. It also parks when it has been put off for longer than `give_up_after`.
    """
    with store.write() as connection:
        event = lock_alive(store, connection, held)
        if event is None:
            return None
        return _Planning(store, connection, held, request).plan(event, make_key)


def begin_first_send(
    store: Store, held: Claim, request: CallRequest, key: str | None, policy: SendPolicy
) -> SendBegun | LeaseLost | None:
    """Insert a call that the journal cannot know yet, and record that its request goes out now: one commit.

    It is for an event that was never claimed before, and for calls without `once`. None when the journal
    has a call in its place all the same: then `plan` decides.
    """
    keyed = request.protection == Protection.KEYED
    send = uuid7()
    # With an underscore: parameters with the names of columns would be set by the statement's UPDATE.
    given = {
        "event_": held.event,
        "generation_": held.generation,
        "claim_": held.token,
        "position_": request.position,
        "step_": request.step,
        "protection_": request.protection,
        "api_": request.api,
        "method_": request.method,
        "url_": request.url,
        "headers_": json.dumps(dict(request.headers)),
        "body_": request.body,
        "key_": key,
        "fingerprint_": request.fingerprint,
        "credential_": policy.credentials[0],
        "call_": request.id,
        "send_": send,
        "key_life_": policy.key_life if keyed else None,
        "deadline_": policy.deadline,
        "quiet_": policy.deadline + policy.settle_delay,
        "lease_": policy.deadline + SLACK,
    }
    with store.write() as connection:
        if store.sqlite:
            found = _begin_first_on_sqlite(store, connection, held, given)
        else:
            statement = store.built(_first_send)
            found = tuple(connection.execute(statement, given | store.moment()).one())
    match found:
        case (None, _):
            return LeaseLost()
        case (_, None):
            return None
    return SendBegun(send)


def compute_once(store: Store, held: Claim, step: str, compute: Callable[[], str]) -> str | None:
    """Return the JSON that a step computed first in this generation; None when the claim is lost.

    If two attempts compute it at once, the one that writes first decides for both.
    """
    mine = (VALUE.c.event == held.event, VALUE.c.generation == held.generation, VALUE.c.step == step)
    found = select(VALUE.c.value).where(*mine)
    with store.read() as connection:
        stored: str | None = connection.execute(found).scalar()
    if stored is not None:
        return stored
    # Outside of any transaction: it is the handler's code, and may take long.
    row = {"event": held.event, "generation": held.generation, "step": step, "value": compute()}
    with store.write() as connection:
        if lock_alive(store, connection, held) is None:
            return None
        insert = insert_for(store, VALUE)
        connection.execute(insert.values(**row, at=store.now()).on_conflict_do_nothing())
        value: str = connection.execute(found).scalar_one()
        return value


# The columns of a new call that its request and its claim bring.
_GIVEN = (
    *("generation", "claim", "position", "step", "protection", "api", "method", "url", "headers", "body"),
    *("key", "fingerprint", "credential"),
)


def _first_send(store: Store) -> Select[Any]:
    """Build `begin_first_send` for PostgreSQL: one statement, which returns the ids of event and call."""
    event, token = bindparam("event_", type_=Uuid()), bindparam("claim_", type_=Integer())
    held = (EVENT.c.id == event, EVENT.c.state == State.PROCESSING, EVENT.c.claim == token)
    alive = (
        select(EVENT.c.id, EVENT.c.lease_until, store.clock.label("now"))
        .where(*held, EVENT.c.lease_until > store.clock)
        .with_for_update()
        .cte("alive")
    )
    now = alive.c.now

    def later(name: str) -> ColumnElement[datetime]:
        return now + cast(bindparam(f"{name}_"), Interval())

    call: dict[str, Any] = {name: bindparam(f"{name}_", type_=CALL.c[name].type) for name in _GIVEN}
    call |= {name: literal(value) for name, value in _FIRST.items()}
    call |= {"id": bindparam("call_", type_=Uuid()), "event": alive.c.id, "quiet_until": later("quiet")}
    call |= {"created_at": now, "trying_since": now, "first_sent_at": now, "expires_at": later("key_life")}
    insert = insert_for(store, CALL).from_select(list(call), select(*call.values()).select_from(alive))
    planned = insert.on_conflict_do_nothing().returning(CALL.c.id, CALL.c.event).cte("planned")
    both = planned.join(alive, planned.c.event == alive.c.id)
    send: dict[str, Any] = {"id": bindparam("send_", type_=Uuid()), "call": planned.c.id, "claim": token}
    send |= {"number": literal(1), "at": now, "sending_until": later("deadline"), "open": true()}
    begun = SEND.insert().from_select(list(send), select(*send.values()).select_from(both)).cte("begun")
    # The lease outlasts the send.
    short = (EVENT.c.id == planned.c.event, EVENT.c.id == alive.c.id, alive.c.lease_until < later("lease"))
    longer = update(EVENT).where(*short).values(lease_until=later("lease")).cte("longer")
    found = select(alive.c.id).scalar_subquery(), select(planned.c.id).scalar_subquery()
    return select(*found).add_cte(begun, longer)


# What every first send of a call begins with.
_FIRST: dict[str, Any] = {
    "state": CallState.PENDING.value,
    "successor": 0,
    "sends": 1,
    "use_stored": False,
}


def _begin_first_on_sqlite(
    store: Store, connection: Connection, held: Claim, given: Mapping[str, Any]
) -> tuple[UUID | None, UUID | None]:
    """Do as `_first_send` does, statement by statement."""
    event = lock_alive(store, connection, held)
    if event is None:
        return None, None
    now = event.now
    call: dict[str, Any] = (
        {name: given[f"{name}_"] for name in _GIVEN} | _FIRST | {"id": given["call_"], "event": held.event}
    )
    call |= {
        "created_at": now,
        "trying_since": now,
        "first_sent_at": now,
        "quiet_until": now + given["quiet_"],
    }
    call["expires_at"] = None if given["key_life_"] is None else now + given["key_life_"]
    insert = insert_for(store, CALL).values(**call).on_conflict_do_nothing().returning(CALL.c.id)
    if connection.execute(insert).first() is None:
        return held.event, None
    send = {"id": given["send_"], "call": given["call_"], "number": 1, "claim": held.token, "at": now}
    connection.execute(SEND.insert().values(**send, sending_until=now + given["deadline_"], open=True))
    if event.lease_until < now + given["lease_"]:
        longer = update(EVENT).where(EVENT.c.id == held.event).values(lease_until=now + given["lease_"])
        connection.execute(longer)
    return held.event, given["call_"]


class _Planning:
    """One call of an attempt, inside one transaction that holds the event."""

    def __init__(self, store: Store, connection: Connection, held: Claim, request: CallRequest) -> None:
        self.store, self.connection, self.held, self.request = store, connection, held, request
        self.mine = (CALL.c.event == held.event, CALL.c.generation == held.generation)

    def plan(self, event: Row[Any], make_key: MakeKey) -> PlannedCall:
        request, row = self.request, self._current()
        elsewhere = self._elsewhere() if row is None or row.step != request.step else None
        if elsewhere is not None:
            return self._refuse_step(elsewhere, event.now)
        if row is None:
            return self._planned(self._insert(make_key), event.now)
        if row.state == CallState.REJECTED and event.revived_at and row.ended_at < event.revived_at:
            # A new delivery revived the event after this: what certainly did not happen may be tried anew.
            replaced = update(CALL).where(CALL.c.id == row.id, is_last())
            self.connection.execute(replaced.values(state=CallState.REPLACED))
            row = self._current()
        if row.state == CallState.REPLACED:
            return self._planned(self._insert(make_key), event.now)
        if row.step != request.step:
            return self._refuse_step(row, event.now)
        if row.fingerprint != request.fingerprint:
            changed = self._note_other_bytes(row)
            if changed:
                return self._planned(self._current(), event.now, changed)
        # The shared call may have ended since the last attempt.
        if row.shares and row.state == CallState.PENDING:
            self._follow(row)
            row = self._current()
        # Waiting that costs no attempt has no other end.
        overdue = row.trying_since + request.give_up_after <= event.now
        if row.state == CallState.PENDING and row.outcome in COSTS_NO_ATTEMPT and overdue:
            since = f"It has been tried since {row.trying_since:%Y-%m-%d %H:%M} UTC, and that is long enough."
            reason = f"{since} {row.reason or ''}".rstrip()
            self._change(row, state=CallState.PARKED, reason=reason, ended_at=event.now)
        self._change(row, claim=self.held.token)
        return self._planned(self._current(), event.now)

    def _current(self) -> Row[Any]:
        """Return the latest call at this position."""
        here = select(CALL).where(*self.mine, CALL.c.position == self.request.position)
        # Typed as a row: only the caller that may find nothing asks.
        return self.connection.execute(here.order_by(CALL.c.successor.desc()).limit(1)).first()  # type: ignore[return-value]

    def _elsewhere(self) -> Row[Any] | None:
        """Return the call that this step was at another position: begun anew here, it would happen twice.

        One that was replaced there may move: it did not happen, or a person wants it anew.
        """
        same = (CALL.c.step == self.request.step, CALL.c.position != self.request.position)
        found = select(CALL).where(*self.mine, *same).order_by(CALL.c.successor.desc()).limit(1)
        row = self.connection.execute(found).first()
        return None if row is None or row.state == CallState.REPLACED else row

    def _insert(self, make_key: MakeKey) -> Row[Any]:
        request, now = self.request, self.store.now()
        # A number that neither this position nor this step has used: the key is made from it.
        used = (CALL.c.position == request.position) | (CALL.c.step == request.step)
        following = select(func.coalesce(func.max(CALL.c.successor) + 1, 0)).where(*self.mine, used)
        successor = int(self.connection.execute(following).scalar_one())
        row: dict[str, Any] = {
            "id": uuid7() if successor else request.id,
            "event": self.held.event,
            "generation": self.held.generation,
            "position": request.position,
            "step": request.step,
            "successor": successor,
            "state": CallState.PENDING,
            "claim": self.held.token,
            "protection": request.protection,
            "api": request.api,
            "method": request.method,
            "url": request.url,
            "headers": json.dumps(dict(request.headers)),
            "body": request.body,
            "key": make_key(successor),
            "fingerprint": request.fingerprint,
            "created_at": now,
            "trying_since": now,
        }
        if request.once is not None:
            insert = insert_for(self.store, CALL)
            first = insert.values(**row, once=request.once).on_conflict_do_nothing().returning(CALL.c.id)
            if self.connection.execute(first).first():
                return self._current()
        self.connection.execute(CALL.insert().values(**row))
        if request.once is not None:
            self._follow(self._current())
        return self._current()

    def _refuse_step(self, row: Row[Any], now: datetime) -> PlannedCall:
        """Refuse a step that another call stands in the way of, and park that call if it is pending."""
        request, number = self.request, self.request.position + 1
        reason = f"Call {number} of this handler was {row.step!r} and is {request.step!r} now."
        if row.step == request.step:
            reason = f"{row.step!r} is call {number} of this handler now; it was {row.position + 1}."
        if row.state == CallState.PENDING:
            self._change(row, state=CallState.PARKED, reason=reason, ended_at=self.store.now())
        elif row.state != CallState.PARKED:
            reason = f"{reason} {RESTORE_ORDER}"
        # Not the call at this position: that may be another one, or none.
        found = self.connection.execute(select(CALL).where(CALL.c.id == row.id)).one()
        return self._planned(found, now, reason)

    def _note_other_bytes(self, row: Row[Any]) -> str | None:
        """Note that the handler asks for other bytes; return why nothing may be sent, if that is so.

        A call that ended returns its stored response all the same: people see that its handler changed.
        """
        asked = self.request.fingerprint
        self._change(row, changed_to=asked)
        if row.state == CallState.SUCCEEDED:
            changed = update(EVENT).where(EVENT.c.id == self.held.event)
            self.connection.execute(changed.values(calls_changed=True))
        if row.state not in (CallState.PENDING, CallState.PARKED) or row.use_stored:
            return None
        reason = (
            f"The handler asks for other bytes in {row.step!r} (fingerprint {asked[:12]}) than it began with"
            f" ({row.fingerprint[:12]}): use the stored bytes, or send the new ones as a successor."
        )
        self._change(row, state=CallState.PARKED, reason=reason, ended_at=self.store.now())
        return reason

    def _follow(self, row: Row[Any]) -> None:
        """Do as the call that this one shares did, or take its `once` when that one never happened."""
        shared = row.shares or self._holder(row)
        first = self.connection.execute(select(CALL).where(CALL.c.id == shared)).first()
        if first is None or first.state in NEVER_EXECUTED:
            fresh = {"trying_since": self.store.now(), "reason": None}
            try:
                with self.connection.begin_nested():
                    self._change(row, shares=None, once=self.request.once, **fresh)
            except IntegrityError:
                # Another event was first: wait for its call.
                self._change(row, shares=self._holder(row))
        elif first.state == CallState.SUCCEEDED:
            reason = f"The call {first.id} of another event did this once for all."
            end = {"state": CallState.SUCCEEDED, "reason": reason}
            if first.answer is None:
                end = {"state": CallState.PARKED, "reason": f"{reason} {RESPONSE_ERASED}"}
            copied = {
                name: getattr(first, name) for name in ("status", "answer_headers", "answer", "outcome")
            }
            self._change(row, shares=first.id, ended_at=self.store.now(), **end, **copied)
        else:
            reason = f"It waits for the call {first.id} of another event, which is not finished."
            self._change(row, shares=first.id, reason=reason)

    def _holder(self, row: Row[Any]) -> UUID | None:
        """Return the call that has this one's `once`."""
        same = (CALL.c.api == row.api, CALL.c.once == self.request.once, CALL.c.state.not_in(NEVER_EXECUTED))
        holder: UUID | None = self.connection.execute(select(CALL.c.id).where(*same)).scalar()
        return holder

    def _change(self, row: Row[Any], **values: Any) -> None:
        self.connection.execute(update(CALL).where(CALL.c.id == row.id).values(**values))

    def _planned(self, row: Row[Any], now: datetime, changed: str | None = None) -> PlannedCall:
        due = row.due_at if row.state == CallState.PENDING and row.due_at else now
        response = None
        if row.status is not None:
            headers = tuple((name, value) for name, value in json.loads(row.answer_headers or "[]"))
            response = StoredResponse(row.status, headers, row.answer)
        return PlannedCall(
            id=row.id,
            step=row.step,
            state=CallState(row.state),
            method=row.method,
            url=row.url,
            headers=json.loads(row.headers),
            body=row.body,
            key=row.key,
            protection=Protection(row.protection),
            sends=row.sends,
            outcome=SendOutcome(row.outcome) if row.outcome else None,
            reason=row.reason,
            delay=max(due - now, timedelta(0)),
            response=response,
            handler_changed=changed,
            waits_for_other=bool(row.shares) and row.state == CallState.PENDING,
            tried_for=now - row.trying_since,
        )
