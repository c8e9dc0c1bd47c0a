"""Planning a call: its row, with key and exact request, is committed before the first byte leaves."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from receiver.ledger.calls.outcome import is_last
from receiver.ledger.calls.sends import StoredResponse
from receiver.ledger.lease import Claim, lock_alive
from receiver.ledger.states import COSTS_NO_ATTEMPT, CallState, Protection, SendOutcome
from receiver.ledger.store import Store
from receiver.ledger.tables import CALL, EVENT, VALUE
from receiver.ledger.text import uuid7

# `once`: one call for all events of an API that name it so. The database decides which.


NEVER_EXECUTED = (CallState.REJECTED, CallState.REPLACED)
"""States of a call that never happened, so that another event may use its `once`."""

TOLD_AGAIN = "Its answer is not kept any more: say that it happened, with the part you need."


def insert_first(store: Store, connection: Connection, row: Mapping[str, Any]) -> bool:
    """Insert a call with `once`; False when another call has it."""
    insert = (sqlite if store.sqlite else postgresql).insert(CALL).values(**row)
    return bool(connection.execute(insert.on_conflict_do_nothing().returning(CALL.c.id)).first())


def follow(store: Store, connection: Connection, row: Row[Any], once: str | None) -> None:
    """Take over what became of the call that this one shares, or its place when that never happened."""
    shares = row.shares or _holder(connection, row.api, once)
    first = connection.execute(select(CALL).where(CALL.c.id == shares)).first()
    if first is None or first.state in NEVER_EXECUTED:
        _take_over(store, connection, row, once)
    elif first.state == CallState.SUCCEEDED:
        _copy(store, connection, row, first)
    else:
        reason = f"It waits for the call {first.id} of another event, which is not finished."
        _change(connection, row, shares=first.id, reason=reason)


def _holder(connection: Connection, api: str, once: str | None) -> UUID | None:
    same = (CALL.c.api == api, CALL.c.once == once, CALL.c.state.not_in(NEVER_EXECUTED))
    holder: UUID | None = connection.execute(select(CALL.c.id).where(*same)).scalar()
    return holder


def _take_over(store: Store, connection: Connection, row: Row[Any], once: str | None) -> None:
    fresh = {"trying_since": store.now(), "reason": None}
    try:
        with connection.begin_nested():
            _change(connection, row, shares=None, once=once, **fresh)
    except IntegrityError:
        # Somebody else was quicker: wait for that one.
        _change(connection, row, shares=_holder(connection, row.api, once))


def _copy(store: Store, connection: Connection, row: Row[Any], first: Row[Any]) -> None:
    kept = {name: getattr(first, name) for name in ("status", "answer_headers", "answer", "outcome")}
    reason = f"The call {first.id} of another event did this once for all."
    end = {"state": CallState.SUCCEEDED, "reason": reason}
    if first.answer is None:
        end = {"state": CallState.PARKED, "reason": f"{reason} {TOLD_AGAIN}"}
    _change(connection, row, shares=first.id, ended_at=store.now(), **end, **kept)


def _change(connection: Connection, row: Row[Any], **values: Any) -> None:
    connection.execute(update(CALL).where(CALL.c.id == row.id).values(**values))


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


MEND = "Nothing was sent: let it make the calls in their first order and retry, or rerun the event."
"""What helps where the call that is asked for no more has ended: nobody can resolve it then."""

MakeKey = Callable[[int], str | None]
"""Makes the key of a step's n-th successor; None where no key protects the call."""


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


class _Planning:
    """One look at the n-th place of an attempt, inside one transaction that holds the event."""

    def __init__(self, store: Store, connection: Connection, held: Claim, request: CallRequest) -> None:
        self.store, self.connection, self.held, self.wanted = store, connection, held, request
        self.mine = (CALL.c.event == self.held.event, CALL.c.generation == self.held.generation)

    def plan(self, event: Row[Any], make_key: MakeKey) -> PlannedCall:
        row = self._current()
        elsewhere = self._elsewhere() if row is None or row.step != self.wanted.step else None
        if elsewhere is not None:
            return self._other_step(elsewhere, event.now)
        if row is None:
            return self._planned(self._insert(self._successor(), make_key), event.now)
        if row.state == CallState.REJECTED and event.revived_at and row.ended_at < event.revived_at:
            # A new delivery revived the event after this: what certainly did not happen may be tried anew.
            self._replace(row)
            row = self._current()
        if row.state == CallState.REPLACED:
            return self._planned(self._insert(self._successor(), make_key), event.now)
        if row.step != self.wanted.step:
            return self._other_step(row, event.now)
        if row.fingerprint != self.wanted.fingerprint:
            changed = self._other_bytes(row)
            if changed:
                return self._planned(self._current(), event.now, changed)
        if row.shares and row.state == CallState.PENDING:
            follow(self.store, self.connection, row, self.wanted.once)
            row = self._current()
        if row.state == CallState.PENDING and row.outcome in COSTS_NO_ATTEMPT:
            self._park_if_overdue(row, event.now)
        self._change(row, claim=self.held.token)
        return self._planned(self._current(), event.now)

    def _current(self) -> Row[Any]:
        here = select(CALL).where(*self.mine, CALL.c.position == self.wanted.position)
        # Typed as a row: only the caller that may find nothing asks.
        return self.connection.execute(here.order_by(CALL.c.successor.desc()).limit(1)).first()  # type: ignore[return-value]

    def _elsewhere(self) -> Row[Any] | None:
        """Return the call that this step was in another place: begun anew here, it would happen twice.

        One that was replaced there may move: it did not happen, or a person wants it anew.
        """
        same = (CALL.c.step == self.wanted.step, CALL.c.position != self.wanted.position)
        found = select(CALL).where(*self.mine, *same).order_by(CALL.c.successor.desc()).limit(1)
        row = self.connection.execute(found).first()
        return None if row is None or row.state == CallState.REPLACED else row

    def _successor(self) -> int:
        """Return a number that neither this place nor this step has used: the key is made from it."""
        used = (CALL.c.position == self.wanted.position) | (CALL.c.step == self.wanted.step)
        following = select(func.coalesce(func.max(CALL.c.successor) + 1, 0)).where(*self.mine, used)
        return int(self.connection.execute(following).scalar_one())

    def _insert(self, successor: int, make_key: MakeKey) -> Row[Any]:
        wanted, now = self.wanted, self.store.now()
        row: dict[str, Any] = {
            "id": uuid7(),
            "event": self.held.event,
            "generation": self.held.generation,
            "position": self.wanted.position,
            "step": wanted.step,
            "successor": successor,
            "state": CallState.PENDING,
            "claim": self.held.token,
            "protection": wanted.protection,
            "api": wanted.api,
            "method": wanted.method,
            "url": wanted.url,
            "headers": json.dumps(dict(wanted.headers)),
            "body": wanted.body,
            "key": make_key(successor),
            "fingerprint": wanted.fingerprint,
            "created_at": now,
            "trying_since": now,
        }
        if wanted.once is None or not insert_first(self.store, self.connection, row | {"once": wanted.once}):
            self.connection.execute(CALL.insert().values(**row))
            if wanted.once is not None:
                follow(self.store, self.connection, self._current(), wanted.once)
        return self._current()

    def _other_step(self, row: Row[Any], now: datetime) -> PlannedCall:
        number = self.wanted.position + 1
        place = f"Call {number} of this handler was {row.step!r} and is {self.wanted.step!r} now."
        if row.step == self.wanted.step:
            place = f"{row.step!r} is call {number} of this handler now; it was {row.position + 1}."
        if row.state == CallState.PENDING:
            self._change(row, state=CallState.PARKED, reason=place, ended_at=self.store.now())
        elif row.state != CallState.PARKED:
            place = f"{place} {MEND}"
        # Not what stands in this place: that may be another call, or none.
        found = self.connection.execute(select(CALL).where(CALL.c.id == row.id)).one()
        return self._planned(found, now, place)

    def _other_bytes(self, row: Row[Any]) -> str | None:
        """Note that the handler asks for other bytes; return why nothing may be sent, if that is so."""
        asked = self.wanted.fingerprint
        self._change(row, changed_to=asked)
        if row.state == CallState.SUCCEEDED:
            self.connection.execute(
                update(EVENT).where(EVENT.c.id == self.held.event).values(calls_changed=True)
            )
        if row.state not in (CallState.PENDING, CallState.PARKED) or row.use_stored:
            return None
        reason = (
            f"The handler asks for other bytes in {row.step!r} (fingerprint {asked[:12]}) than it began with"
            f" ({row.fingerprint[:12]}): use the stored bytes, or send the new ones as a successor."
        )
        self._change(row, state=CallState.PARKED, reason=reason, ended_at=self.store.now())
        return reason

    def _park_if_overdue(self, row: Row[Any], now: datetime) -> None:
        if row.trying_since + self.wanted.give_up_after <= now:
            since = f"It has been tried since {row.trying_since:%Y-%m-%d %H:%M} UTC, and that is long enough."
            self._change(
                row, state=CallState.PARKED, reason=f"{since} {row.reason or ''}".rstrip(), ended_at=now
            )

    def _replace(self, row: Row[Any]) -> None:
        replaced = update(CALL).where(CALL.c.id == row.id, is_last())
        self.connection.execute(replaced.values(state=CallState.REPLACED))

    def _change(self, row: Row[Any], **values: Any) -> None:
        self.connection.execute(update(CALL).where(CALL.c.id == row.id).values(**values))

    def _planned(self, row: Row[Any], now: datetime, changed: str | None = None) -> PlannedCall:
        due = row.due_at if row.state == CallState.PENDING and row.due_at else now
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
            response=_response(row),
            handler_changed=changed,
            waits_for_other=bool(row.shares) and row.state == CallState.PENDING,
            tried_for=now - row.trying_since,
        )


def _response(row: Row[Any]) -> StoredResponse | None:
    if row.status is None:
        return None
    headers = tuple((name, value) for name, value in json.loads(row.answer_headers or "[]"))
    return StoredResponse(row.status, headers, row.answer)


# Values that a handler computes once for a generation: times, random numbers, what a GET returned.


def compute_once(store: Store, held: Claim, step: str, compute: Callable[[], str]) -> str | None:
    """Return the JSON that a step computed first in this generation; None when the claim is lost."""
    found = select(VALUE.c.value).where(
        VALUE.c.event == held.event, VALUE.c.generation == held.generation, VALUE.c.step == step
    )
    with store.read() as connection:
        stored: str | None = connection.execute(found).scalar()
    if stored is not None:
        return stored
    row = {"event": held.event, "generation": held.generation, "step": step, "value": compute()}
    with store.write() as connection:
        if lock_alive(store, connection, held) is None:
            return None
        insert = (sqlite if store.sqlite else postgresql).insert(VALUE)
        connection.execute(insert.values(**row, at=store.now()).on_conflict_do_nothing())
        value: str = connection.execute(found).scalar_one()
        return value
