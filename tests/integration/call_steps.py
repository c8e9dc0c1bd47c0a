"""Steps for tests of outbound calls: plan, send and answer calls without any network."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Row, select, update

from receiver.ledger.calls import (
    CallRequest,
    Classification,
    PlannedCall,
    SendBegun,
    SendPolicy,
    SendResult,
    StoredResponse,
    begin_send,
    plan,
    record_response,
)
from receiver.ledger.lease import Claim
from receiver.ledger.lease import Outcome as End
from receiver.ledger.queue import settle
from receiver.ledger.states import Move, Protection, SendOutcome
from receiver.ledger.store import Store
from receiver.ledger.tables import CALL
from tests.integration.steps import deliver, state, take

TERMS = SendPolicy(
    deadline=timedelta(seconds=30),
    key_life=timedelta(hours=24),
    key_margin=timedelta(minutes=10),
    settle_delay=timedelta(seconds=15),
    credentials=("credential",),
)
KEPT = (("Content-Type", "application/json"),)


def wanted(step: str = "letter", **change: Any) -> CallRequest:
    """Return a request for a call, as a handler makes it."""
    asked = {
        "position": 0,
        "step": step,
        "api": "stannp",
        "method": "POST",
        "url": "http://api.test/letters",
        "headers": {"Content-Type": "application/json"},
        "body": b'{"to":"Ann"}',
        "fingerprint": "f" * 64,
        "protection": Protection.KEYED,
        "give_up_after": timedelta(days=3),
    }
    return CallRequest(**(asked | change))


def planned(store: Store, held: Claim, step: str = "letter", position: int = 0, **change: Any) -> PlannedCall:
    """Plan a call at a position of an attempt; fail if the claim was lost."""
    request = wanted(step, position=position, **change)
    found = plan(store, held, request, lambda successor: f"key-{step}-{successor}")
    assert found is not None, "the claim was lost"
    return found


def sent(store: Store, held: Claim, call: UUID) -> UUID:
    """Begin a send of a call; fail if it may not go out."""
    done = begin_send(store, held, call, TERMS)
    assert isinstance(done, SendBegun), done
    return done.send


def answered(
    store: Store, held: Claim, call: UUID, outcome: SendOutcome, status: int = 201, **verdict: Any
) -> None:
    """Send a call and record a response classified as `outcome`; status 0 means that no response came."""
    send = sent(store, held, call)
    judged = Classification(outcome, reason=f"It was {outcome}.", **verdict)
    answer = StoredResponse(status, KEPT, b'{"id":7}') if status else None
    receipt = SendResult(send, answer, lambda _context, _now: judged, TERMS, timedelta(seconds=5))
    record_response(store, held, call, receipt)


def call_row(store: Store, call: UUID) -> Row[Any]:
    """Return a call's row; fail if it was deleted."""
    with store.read() as connection:
        return connection.execute(select(CALL).where(CALL.c.id == call)).one()


def change_call(store: Store, call: UUID, **values: Any) -> None:
    """Set columns of a call directly, where reaching that state would take many steps."""
    with store.write() as connection:
        connection.execute(update(CALL).where(CALL.c.id == call).values(**values))


def with_parked_call(store: Store, event_id: str = "evt_1", **change: Any) -> tuple[UUID, UUID]:
    """Record an event, send a call of it that gets no response, and park both; return their ids."""
    event = deliver(store, event_id).event
    held = take(store, event)
    call = planned(store, held, **change).id
    answered(store, held, call, SendOutcome.UNKNOWN, 0, open=True, park=True)
    assert settle(store, [(held, End(Move.FINISH))])
    assert state(store, event) == "parked"
    return event, call
