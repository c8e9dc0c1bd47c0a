"""Short words for what tests do with outbound calls: plan, send and answer them without any network."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Row, select, update

from receiver.ledger.calls import (
    Answered,
    Marked,
    Place,
    Planned,
    Receipt,
    Terms,
    Wanted,
    begin_send,
    plan,
    record_response,
)
from receiver.ledger.lease import Claim
from receiver.ledger.lease import Outcome as End
from receiver.ledger.queue import settle
from receiver.ledger.states import Judgement, Move, Protection, SendOutcome
from receiver.ledger.store import Store
from receiver.ledger.tables import CALL
from tests.integration.steps import deliver, state, take

TERMS = Terms(
    deadline=timedelta(seconds=30),
    life=timedelta(hours=24),
    margin=timedelta(minutes=10),
    quiet=timedelta(seconds=15),
    credentials=("credential",),
)
KEPT = (("Content-Type", "application/json"),)


def wanted(step: str = "letter", **change: Any) -> Wanted:
    """Return a call as a handler asks for it."""
    asked = {
        "step": step,
        "api": "stannp",
        "method": "POST",
        "url": "http://api.test/letters",
        "headers": {"Content-Type": "application/json"},
        "body": b'{"to":"Ann"}',
        "fingerprint": "f" * 64,
        "protection": Protection.KEYED,
    }
    return Wanted(**(asked | change))


def planned(store: Store, held: Claim, step: str = "letter", position: int = 0, **change: Any) -> Planned:
    """Plan the n-th call of an attempt; fail when the claim is lost."""
    place = Place(held, position, timedelta(days=3))
    found = plan(store, place, wanted(step, **change), lambda successor: f"key-{step}-{successor}")
    assert found is not None, "the claim was lost"
    return found


def sent(store: Store, held: Claim, call: UUID) -> UUID:
    """Mark a send of a call; fail when it may not go out."""
    done = begin_send(store, held, call, TERMS)
    assert isinstance(done, Marked), done
    return done.send


def answered(
    store: Store, held: Claim, call: UUID, outcome: SendOutcome, status: int = 201, **verdict: Any
) -> None:
    """Send a call and record an answer that means this; without a status nothing came back."""
    send = sent(store, held, call)
    judged = Judgement(outcome, reason=f"It was {outcome}.", **verdict)
    answer = Answered(status, KEPT, b'{"id":7}') if status else None
    receipt = Receipt(send, answer, lambda _standing, _now: judged, TERMS, timedelta(seconds=5))
    record_response(store, held, call, receipt)


def call_row(store: Store, call: UUID) -> Row[Any]:
    """Return a call's row; fail when it is gone."""
    with store.read() as connection:
        return connection.execute(select(CALL).where(CALL.c.id == call)).one()


def change_call(store: Store, call: UUID, **values: Any) -> None:
    """Put a call into a shape that would take long to reach."""
    with store.write() as connection:
        connection.execute(update(CALL).where(CALL.c.id == call).values(**values))


def with_parked_call(store: Store, event_id: str = "evt_1", **change: Any) -> tuple[UUID, UUID]:
    """Record an event, send a call of it that nobody answers, and park both; return their ids."""
    event = deliver(store, event_id).event
    held = take(store, event)
    call = planned(store, held, **change).id
    answered(store, held, call, SendOutcome.UNKNOWN, 0, open=True, park=True)
    assert settle(store, held, End(Move.FINISH))
    assert state(store, event) == "parked"
    return event, call
