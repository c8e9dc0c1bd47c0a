"""Sending a call: marked under the locked event before the first byte; answered by the send's own id."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, select, update

from receiver.ledger.calls.models import CALL, SEND
from receiver.ledger.calls.states import CallState, Protection
from receiver.ledger.claimed import Claim, lock_alive
from receiver.ledger.ids import uuid7
from receiver.ledger.models import EVENT
from receiver.ledger.store import Store

SLACK = timedelta(seconds=5)
"""How much longer than a send its lease lasts: the answer must still be written down."""


@dataclass(frozen=True)
class Terms:
    """What one API's configuration says of its sends. `credentials` are HMACs of the present one."""

    deadline: timedelta
    life: timedelta
    margin: timedelta
    quiet: timedelta
    credentials: tuple[str, ...]
    """Under each secret key, the current one first."""
    apart: bool = False
    """Whether two copies must not be under way at once: the API does not say what it does then."""


@dataclass(frozen=True)
class Marked:
    """The send is committed: write at once."""

    send: UUID


@dataclass(frozen=True)
class Lost:
    """The claim is lost; whoever holds the event now goes on."""


@dataclass(frozen=True)
class NotYet:
    """An earlier send may still be under way there."""

    delay: timedelta


@dataclass(frozen=True)
class Stopped:
    """The call cannot go out any more: it is parked, or has ended meanwhile."""

    state: CallState
    reason: str


Mark = Marked | Lost | NotYet | Stopped


def begin_send(store: Store, held: Claim, call: UUID, terms: Terms) -> Mark:
    """Note that a call's request goes out now, if claim, lease, key's life and credential allow it.

    The lease outlasts the send. While an earlier send is open, a resend is as safe as what protects it.
    """
    with store.write() as connection:
        event = lock_alive(store, connection, held)
        if event is None:
            return Lost()
        row = connection.execute(select(CALL).where(CALL.c.id == call)).one()
        if row.state != CallState.PENDING:
            return Stopped(CallState(row.state), row.reason or "")
        until = open_until(connection, call)
        obstacle = _obstacle(row, terms, event.now) if until else None
        if obstacle:
            end = {"state": CallState.PARKED, "reason": obstacle, "ended_at": event.now}
            connection.execute(update(CALL).where(CALL.c.id == call).values(**end))
            return Stopped(CallState.PARKED, obstacle)
        if until and terms.apart and until + terms.quiet > event.now:
            return NotYet(until + terms.quiet - event.now)
        return _begin(connection, held, row, terms, event)


def _obstacle(row: Row[Any], terms: Terms, now: datetime) -> str | None:
    """Say why a call with an open send may not go out again; None if it may."""
    often = "once" if row.sends == 1 else f"{row.sends} times"
    sent = f"It went out {often}, and nobody knows whether it happened"
    if row.protection == Protection.UNPROTECTED:
        return f"{sent}; nothing protects it from happening twice."
    if row.protection == Protection.KEYED and row.expires_at - terms.margin <= now:
        return f"{sent}; its key is forgotten there at {row.expires_at:%Y-%m-%d %H:%M:%S} UTC at the latest."
    if row.credential not in terms.credentials:
        return f"{sent}; the credential was changed since, and under another one its key may mean nothing."
    return None


def _begin(connection: Connection, held: Claim, row: Row[Any], terms: Terms, event: Row[Any]) -> Marked:
    until = event.now + terms.deadline
    if event.lease_until < until + SLACK:
        longer = {"lease_until": until + SLACK}
        connection.execute(update(EVENT).where(EVENT.c.id == held.event).values(**longer))
    first = row.first_sent_at is None
    keyed = row.protection == Protection.KEYED
    change = {
        "sends": row.sends + 1,
        "credential": terms.credentials[0],
        "quiet_until": until + terms.quiet,
        "first_sent_at": event.now if first else row.first_sent_at,
        "expires_at": (event.now + terms.life if keyed else None) if first else row.expires_at,
    }
    connection.execute(update(CALL).where(CALL.c.id == row.id).values(**change))
    send = {"id": uuid7(), "call": row.id, "number": row.sends + 1, "claim": held.token}
    connection.execute(SEND.insert().values(**send, at=event.now, sending_until=until, open=True))
    return Marked(send["id"])


def open_until(connection: Connection, call: UUID, but: UUID | None = None) -> datetime | None:
    """Return until when the last open send of a call may be under way; None when none is open."""
    mine = [SEND.c.call == call, SEND.c.open] + ([SEND.c.id != but] if but else [])
    found = select(SEND.c.sending_until).where(*mine).order_by(SEND.c.sending_until.desc()).limit(1)
    until: datetime | None = connection.execute(found).scalar()
    return until
