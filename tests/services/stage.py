"""A ledger with one event of every kind, made through the ledger's own functions, for dashboards."""

import json
import random
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import update

from receiver.ledger.calls import (
    CallRequest,
    Classification,
    SendBegun,
    SendPolicy,
    SendResult,
    StoredResponse,
    begin_send,
    plan,
    record_response,
)
from receiver.ledger.counters import CounterKind, Rejected, bump, record_rejections
from receiver.ledger.intake import Delivery, record
from receiver.ledger.lease import Outcome
from receiver.ledger.queue import settle
from receiver.ledger.states import Move, Protection, SendOutcome
from receiver.ledger.store import Store
from receiver.ledger.tables import CALL, COUNTER, EVENT
from receiver.ledger.text import uuid7
from tests.services.claiming import claim

TERMS = SendPolicy(
    timedelta(seconds=30), timedelta(hours=24), timedelta(minutes=10), timedelta(seconds=15), ("mark",)
)
EMAIL = "ada.lovelace@example.com"
TRACEBACK = """Traceback (most recent call last):
  File "handlers/billing.py", line 31, in invoice_paid
    ship(invoice["id"])
  File "handlers/billing.py", line 58, in ship
    raise ConnectionError("warehouse.internal refused the connection")
ConnectionError: warehouse.internal refused the connection
"""
LETTER = CallRequest(
    position=0,
    step="thank-you letter",
    api="stannp",
    method="POST",
    url="http://127.0.0.1:8001/stannp/api/v1/letters/create",
    headers={"Content-Type": "application/json"},
    body=json.dumps({"recipient": {"title": "Ms", "email": EMAIL}}).encode(),
    fingerprint="f" * 64,
    protection=Protection.KEYED,
    give_up_after=timedelta(days=3),
)


@dataclass(frozen=True)
class Stage:
    """The ids of its events, and of the call that one of them is parked for."""

    done: UUID
    dead: UUID
    parked: UUID
    parked_call: UUID
    without_id: UUID
    call: UUID


def body_of(event_id: str, **data: Any) -> bytes:
    """Return an event's body as Stripe writes it; `data` becomes part of `data.object`."""
    shown = {"customer_name": "Ada Lovelace", "email": EMAIL, "currency": "eur", "amount_paid": 4200}
    whole = {"id": event_id, "type": "invoice.paid", "data": {"object": shown | data}}
    return json.dumps(whole, separators=(",", ":")).encode()


def deliver(store: Store, event_id: str, *, times: int = 1, **change: Any) -> UUID:
    """Deliver an event this many times; return its id."""
    given = {"source": "stripe", "type": "invoice.paid", "body": body_of(event_id), "address": "203.0.113.7"}
    given |= {"content_type": "application/json", "headers": {"Stripe-Version": "2025-03-31"}}
    for _ in range(times):
        found = record(store, [Delivery(event_id=event_id, **(given | change))])[0].event
    return found


def set_up(store: Store) -> Stage:
    """Fill an empty ledger."""
    done, call = _with_call(store, "evt_1Qx7done", SendOutcome.SUCCEEDED)
    deliver(store, "evt_1Qx7done", times=2)
    deliver(store, "evt_1Qx7done", body=body_of("evt_1Qx7done", amount_paid=4300))
    parked, parked_call = _with_call(store, "evt_1Qx9letter", SendOutcome.UNKNOWN)
    dead = deliver(store, "evt_1Qx8ship")
    for move in (Move.RETRY_LATER, Move.GIVE_UP):
        _end(store, dead, Outcome(move, reason="warehouse.internal refused the connection", error=TRACEBACK))
    problem = "Its body has no id at json:id, so it is kept under its hash."
    without = deliver(store, "sha256:4be1", type="unknown", body=b'{"hello": "world"}', problem=problem)
    record_rejections(store, [Rejected("stripe", "bad_signature", "198.51.100.9")] * 3)
    record_rejections(store, [Rejected("github", "too_old", "198.51.100.10")])
    return Stage(done, dead, parked, parked_call, without, call)


def crowd(store: Store, count: int = 900, minutes: int = 60) -> None:
    """Add done events and duplicates over the last minutes, for charts."""
    rng, now = random.Random(7), datetime.now(UTC)
    rows = []
    for number in range(count):
        at = now - timedelta(minutes=minutes) * rng.random() ** 0.8
        rows.append(
            {
                "id": uuid7(int(at.timestamp() * 1000)),
                "source": rng.choice(["stripe", "stripe", "github"]),
                "event_id": f"evt_crowd_{number}",
                "type": rng.choice(["invoice.paid", "invoice.voided", "push"]),
                "state": "done",
                "attempts": 1,
                "due_at": at,
                "received_at": at,
                "finished_at": at + timedelta(seconds=1),
                "body_hash": f"{number:064x}",
                "body": b"{}",
                "headers": "{}",
            }
        )
    repeats = [
        {
            "kind": CounterKind.DELIVERY,
            "minute": (now - timedelta(minutes=back)).replace(second=0, microsecond=0),
            "name": "stripe",
            "what": "duplicate",
            "slot": 0,
            "count": rng.randrange(1, 5),
        }
        for back in range(1, minutes, 3)
    ]
    with store.write() as connection:
        connection.execute(EVENT.insert(), [{**_zeros(), **row} for row in rows])
        connection.execute(COUNTER.insert(), repeats)
        bump(store, connection, {(CounterKind.DELIVERY, "stripe", "duplicate"): 2})


def _zeros() -> dict[str, Any]:
    numbers = ("generation", "crashes", "claim", "nudges", "duplicates", "conflicts")
    return dict.fromkeys(numbers, 0) | {"discarded": False, "suspected_replay": False}


def _end(store: Store, event: UUID, end: Outcome) -> None:
    with store.write() as connection:
        now = {"due_at": store.now()}
        connection.execute(update(EVENT).where(EVENT.c.id == event).values(**now))
    held = claim(store, event, lease=timedelta(seconds=60), worker="worker-1:42")
    assert held
    assert settle(store, [(held, end)])


def _with_call(store: Store, event_id: str, outcome: SendOutcome) -> tuple[UUID, UUID]:
    """Make an event with one call: succeeded and done, or sent, never answered and parked."""
    event = deliver(store, event_id)
    held = claim(store, event, lease=timedelta(seconds=60), worker="worker-1:42")
    assert held
    planned = plan(
        store,
        held,
        replace(LETTER, id=uuid7()),
        lambda _: f"5f0c7a1e-0000-4000-8000-{event.hex[:12]}",
    )
    assert planned
    marked = begin_send(store, held, planned.id, TERMS)
    assert isinstance(marked, SendBegun)
    fine = outcome == SendOutcome.SUCCEEDED
    reason = "The letter was made." if fine else "The connection broke before an answer came."
    verdict = Classification(outcome, park=not fine, open=not fine, reason=reason)
    kept = StoredResponse(201, (("Content-Type", "application/json"),), b'{"id": 7}') if fine else None
    receipt = SendResult(marked.send, kept, lambda _context, _now: verdict, TERMS, timedelta(seconds=5))
    record_response(store, held, planned.id, receipt)
    assert settle(store, [(held, Outcome(Move.FINISH))])
    with store.write() as connection:
        # The settle delay is over, so every resolution is allowed.
        past = {"quiet_until": datetime.now(UTC) - timedelta(minutes=1)}
        connection.execute(update(CALL).where(CALL.c.id == planned.id).values(**past))
    return event, planned.id
