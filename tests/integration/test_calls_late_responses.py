"""Late responses, recorded by the id of their send, whichever worker holds the event."""

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from receiver.ledger.control import Resolution, resolve, retry
from receiver.ledger.lease import Outcome
from receiver.ledger.queue import settle
from receiver.ledger.states import Move
from receiver.ledger.store import Store
from tests.integration.call_harness import SILENCE, CallHarness, crash, letter, posts, reply, used_up
from tests.integration.steps import deliver, later, row, state, take
from worker.calls.transport import Outgoing, Reply

TOO_LONG = replace(reply(), truncated=True)


def parked(harness: CallHarness, event: UUID) -> Any:
    """Lose a response until the key has expired; return the claim that sent the call."""
    held = harness.die(event, _dying(harness))
    later(harness.store, days=2)
    assert harness.run(event, letter) == "parked"
    return held


def _dying(harness: CallHarness) -> Any:
    harness.transport.script = [crash]
    return letter


def _keeping(seen: list[Any]) -> Any:
    """Return a handler like `letter` that keeps its response."""

    def handle(_event: Any, calls: Any) -> None:
        seen.append(calls.shop.post("/letters", json={"to": "ada"}, step="letter"))

    return handle


def test_a_late_success_closes_a_call_and_its_sends(harness: CallHarness, event: UUID) -> None:
    """A 201 that arrives after a takeover ends the call for the present holder of the event."""
    frozen = harness.die(event, _dying(harness))
    later(harness.store, seconds=61)
    fresh = harness.take(event)
    call = harness.call(event)
    recorded = harness.late(frozen, harness.sends(call.id)[0], reply(201, b"late"))
    assert (recorded.state, harness.open_sends(call.id)) == ("succeeded", 0)
    seen: list[Any] = []
    end = harness.perform(fresh, _keeping(seen))
    assert end.move is Move.FINISH
    assert (seen[0].content, len(harness.transport.sent)) == (b"late", 1)


def test_a_late_answer_wakes_the_event_that_waited_for_it(harness: CallHarness, event: UUID) -> None:
    """A late response makes the event that is parked for its call due, and nothing is resent."""
    held = parked(harness, event)
    call = harness.call(event)
    harness.late(held, harness.sends(call.id)[0], reply())
    found = row(harness.store, event)
    assert (found.state, found.parked_call) == ("waiting", None)
    assert harness.run(event, letter) == "done"
    assert len(harness.transport.sent) == 1


def test_a_late_rejection_ends_the_event(harness: CallHarness, event: UUID) -> None:
    """A late 422 of the only send rejects the call, and the woken event dies."""
    held = parked(harness, event)
    harness.late(held, harness.sends(harness.call(event).id)[0], reply(422))
    assert harness.run(event, letter) == "dead"


def test_a_late_unknown_response_does_not_wake_the_event(harness: CallHarness, event: UUID) -> None:
    """A late 500 leaves the call and the event parked and the send open."""
    held = parked(harness, event)
    call = harness.call(event)
    harness.late(held, harness.sends(call.id)[0], reply(500))
    assert (harness.call(event).state, harness.open_sends(call.id)) == ("parked", 1)
    assert state(harness.store, event) == "parked"


def test_a_late_answer_wakes_only_what_waits_for_it(harness: CallHarness, event: UUID) -> None:
    """An event that is parked for another reason stays parked."""
    held = parked(harness, event)
    retry(harness.store, event, "ada")
    assert settle(harness.store, [(take(harness.store, event), Outcome(Move.PARK, reason="Look at this."))])
    # The retry made the unfinished call pending again, and the event is not parked for it.
    harness.late(held, harness.sends(harness.call(event).id)[0], reply())
    assert (harness.call(event).state, state(harness.store, event)) == ("succeeded", "parked")


def test_an_event_that_a_late_answer_wakes_has_its_attempts_again(harness: CallHarness, event: UUID) -> None:
    """An event whose attempts were used up has fresh attempts when a late response wakes it."""
    harness.transport.script = [SILENCE]
    used_up(harness.store, event)
    held = harness.take(event)
    assert settle(harness.store, [(held, harness.perform(held, letter))])
    assert state(harness.store, event) == "parked"
    harness.late(held, harness.sends(harness.call(event).id)[0], reply())
    assert harness.run(event, posts("letter", "after")) == "done"


def test_an_answer_between_parking_and_settling_is_not_overlooked(harness: CallHarness, event: UUID) -> None:
    """A call that ends between its parking and the settlement does not park the event."""
    frozen = harness.die(event, _dying(harness))
    later(harness.store, days=2)
    held = harness.take(event)
    end = harness.perform(held, letter)
    assert end.move is Move.PARK
    harness.late(frozen, harness.sends(harness.call(event).id)[0], reply())
    assert settle(harness.store, [(held, end)])
    assert state(harness.store, event) == "waiting"
    assert harness.run(event, letter) == "done"


def test_a_late_success_stands_for_a_replaced_call(harness: CallHarness, event: UUID) -> None:
    """A late success of a call that was resolved as resend-as-new prevents the resend."""
    held = parked(harness, event)
    resolve(harness.store, harness.call(event).id, Resolution.RESEND_AS_NEW, "ada")
    harness.late(held, harness.sends(harness.call(event).id)[0], reply())
    assert harness.run(event, letter) == "done"
    assert (len(harness.transport.sent), [call.state for call in harness.calls(event)]) == (1, ["succeeded"])


def test_a_late_success_changes_nothing_once_its_successor_stands(harness: CallHarness, event: UUID) -> None:
    """Once a successor exists, a late success changes only the send of the first call."""
    held = parked(harness, event)
    resolve(harness.store, harness.call(event).id, Resolution.RESEND_AS_NEW, "ada")
    assert harness.run(event, letter) == "done"
    first = harness.calls(event)[0]
    harness.late(held, harness.sends(first.id)[0], reply(201, b"first"))
    assert [call.state for call in harness.calls(event)] == ["replaced", "succeeded"]
    assert (harness.sends(first.id)[0].status, state(harness.store, event)) == (201, "done")


def test_a_late_success_changes_nothing_once_its_successor_stands_elsewhere(
    harness: CallHarness, event: UUID
) -> None:
    """The same holds for a successor in another position."""
    both = posts("order", "letter", caught=True)
    harness.transport.script = [reply(422), crash]
    held = harness.die(event, both)
    later(harness.store, days=2)
    assert harness.run(event, both) == "parked"
    first = harness.call(event)
    resolve(harness.store, first.id, Resolution.RESEND_AS_NEW, "ada")
    assert harness.run_after_retry(event, posts("letter")) == "done"
    harness.late(held, harness.sends(first.id)[0], reply())
    assert [(call.step, call.position, call.state) for call in harness.calls(event)] == [
        ("order", 0, "replaced"),
        ("letter", 0, "succeeded"),
        ("letter", 1, "replaced"),
    ]


def test_a_late_failure_opens_nothing_again(harness: CallHarness, event: UUID) -> None:
    """A late 500 does not reopen a send that a replay has closed."""
    held = harness.die(event, _dying(harness))
    assert harness.run(event, letter) == "done"
    call = harness.call(event)
    harness.late(held, harness.sends(call.id)[0], reply(500))
    assert harness.open_sends(call.id) == 0


def test_the_handler_gets_the_answer_that_is_kept(harness: CallHarness, event: UUID) -> None:
    """A 201 recorded while a resend is in progress wins over the resend's 404."""
    frozen = harness.die(event, _dying(harness))

    def refused(_request: Outgoing) -> Reply:
        harness.late(frozen, harness.sends(harness.call(event).id)[0], reply(201, b"first"))
        return reply(404, b"gone")

    harness.transport.script = [refused]
    seen: list[Any] = []
    held = harness.take(event)
    assert settle(harness.store, [(held, harness.perform(held, _keeping(seen)))])
    assert [(item.status_code, item.content) for item in seen] == [(201, b"first")]
    assert state(harness.store, event) == "done"


@pytest.mark.parametrize("dialect", ["stripe", "none"])
def test_an_answer_that_is_too_long_is_no_reason_to_send_again(store: Store, dialect: str) -> None:
    """A success whose response is too long parks, and a retry after the key's expiry sends nothing."""
    harness, event = CallHarness(store, dialect), deliver(store).event
    harness.transport.script = [TOO_LONG]

    def handle(_event: Any, calls: Any) -> None:
        calls.shop.post("/letters", json={}, unprotected=True)

    assert harness.run(event, handle) == "parked"
    later(store, days=2)
    retry(store, event, "ada")
    assert harness.run(event, handle) == "parked"
    assert len(harness.transport.sent) == 1


def test_a_call_with_a_truncated_response_can_be_resolved(harness: CallHarness, event: UUID) -> None:
    """Resolving the call as happened ends it and closes its send."""
    harness.transport.script = [TOO_LONG]
    assert harness.run(event, letter) == "parked"
    resolve(harness.store, harness.call(event).id, Resolution.HAPPENED, "ada")
    assert harness.run(event, letter) == "done"
    assert harness.open_sends(harness.call(event).id) == 0


def test_a_late_answer_that_is_too_long_stops_the_successor(harness: CallHarness, event: UUID) -> None:
    """A late response that is too long parks a call that waits to be resent as new."""
    held = parked(harness, event)
    resolve(harness.store, harness.call(event).id, Resolution.RESEND_AS_NEW, "ada")
    harness.late(held, harness.sends(harness.call(event).id)[0], TOO_LONG)
    assert harness.run(event, letter) == "parked"
    assert len(harness.transport.sent) == 1


def test_a_late_success_leaves_its_once_to_the_call_that_took_it(store: Store, harness: CallHarness) -> None:
    """A late success is recorded, although another event has taken over the call's `once`."""
    first, second = deliver(store, "evt_1").event, deliver(store, "evt_2").event
    handle = posts("order", once="order-1")
    harness.transport.script = [crash]
    held = harness.die(first, handle)
    later(store, days=2)
    assert harness.run(first, handle) == "parked"
    resolve(store, harness.call(first).id, Resolution.RESEND_AS_NEW, "ada")
    assert harness.run(second, handle) == "done"
    harness.late(held, harness.sends(harness.call(first).id)[0], reply())
    assert harness.call(first).state == "succeeded"
    assert harness.run(first, handle) == "done"


@pytest.mark.parametrize("status", [201, 422])
def test_an_answer_after_the_life_of_the_key_still_counts(store: Store, status: int) -> None:
    """The response to a call's only send counts, also days after the key expired."""
    harness, event = CallHarness(store), deliver(store).event
    held = parked(harness, event)
    later(store, days=3)
    recorded = harness.late(held, harness.sends(harness.call(event).id)[0], reply(status))
    assert recorded.state == {201: "succeeded", 422: "rejected"}[status]
