"""Answers that come late, by the id of their send, whoever holds the event by then."""

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from receiver.ledger.control import Resolution, resolve, retry
from receiver.ledger.lease import Outcome
from receiver.ledger.queue import settle
from receiver.ledger.states import Move
from receiver.ledger.store import Store
from tests.integration.office import SILENCE, Office, crash, letter, posts, reply, used_up
from tests.integration.steps import deliver, later, row, state, take
from worker.calls.transport import Outgoing, Reply

TOO_LONG = replace(reply(), truncated=True)


def parked(office: Office, event: UUID) -> Any:
    """Lose an answer until the key's life is over; return the claim that sent it."""
    held = office.die(event, _dying(office))
    later(office.store, days=2)
    assert office.run(event, letter) == "parked"
    return held


def _dying(office: Office) -> Any:
    office.transport.script = [crash]
    return letter


def _keeping(seen: list[Any]) -> Any:
    """Return the handler of `letter`, which keeps its response."""

    def handle(_event: Any, calls: Any) -> None:
        seen.append(calls.shop.post("/letters", json={"to": "ada"}, step="letter"))

    return handle


def test_a_late_success_closes_a_call_and_its_sends(office: Office, event: UUID) -> None:
    """A 201 that comes after a takeover ends the call for whoever holds the event."""
    frozen = office.die(event, _dying(office))
    later(office.store, seconds=61)
    fresh = office.take(event)
    call = office.call(event)
    recorded = office.late(frozen, office.sends(call.id)[0], reply(201, b"late"))
    assert (recorded.state, office.open_sends(call.id)) == ("succeeded", 0)
    seen: list[Any] = []
    end = office.perform(fresh, _keeping(seen))
    assert end.move is Move.FINISH
    assert (seen[0].content, len(office.transport.sent)) == (b"late", 1)


def test_a_late_answer_wakes_the_event_that_waited_for_it(office: Office, event: UUID) -> None:
    """A parked event goes on by itself once its call's answer is there, and sends nothing."""
    held = parked(office, event)
    call = office.call(event)
    office.late(held, office.sends(call.id)[0], reply())
    found = row(office.store, event)
    assert (found.state, found.parked_call) == ("waiting", None)
    assert office.run(event, letter) == "done"
    assert len(office.transport.sent) == 1


def test_a_late_rejection_ends_the_event(office: Office, event: UUID) -> None:
    """A late 422 of the only send says that nothing happened: the woken event ends dead."""
    held = parked(office, event)
    office.late(held, office.sends(office.call(event).id)[0], reply(422))
    assert office.run(event, letter) == "dead"


def test_an_answer_that_tells_nothing_wakes_nobody(office: Office, event: UUID) -> None:
    """A late 500 leaves call and event parked and the send open."""
    held = parked(office, event)
    call = office.call(event)
    office.late(held, office.sends(call.id)[0], reply(500))
    assert (office.call(event).state, office.open_sends(call.id)) == ("parked", 1)
    assert state(office.store, event) == "parked"


def test_a_late_answer_wakes_only_what_waits_for_it(office: Office, event: UUID) -> None:
    """An event that was parked for another reason stays parked when a call of it ends."""
    held = parked(office, event)
    retry(office.store, event, "ada")
    assert settle(office.store, [(take(office.store, event), Outcome(Move.PARK, reason="Look at this."))])
    # Its unfinished call is pending again, and nothing parks the event for it.
    office.late(held, office.sends(office.call(event).id)[0], reply())
    assert (office.call(event).state, state(office.store, event)) == ("succeeded", "parked")


def test_an_event_that_a_late_answer_wakes_has_its_attempts_again(office: Office, event: UUID) -> None:
    """Attempts were used up while the answer was lost: it still gets to its end, and not to the dead."""
    office.transport.script = [SILENCE]
    used_up(office.store, event)
    held = office.take(event)
    assert settle(office.store, [(held, office.perform(held, letter))])
    assert state(office.store, event) == "parked"
    office.late(held, office.sends(office.call(event).id)[0], reply())
    assert office.run(event, posts("letter", "after")) == "done"


def test_an_answer_between_parking_and_settling_is_not_overlooked(office: Office, event: UUID) -> None:
    """The call ends after it parked and before the attempt does: the event is not parked for it."""
    frozen = office.die(event, _dying(office))
    later(office.store, days=2)
    held = office.take(event)
    end = office.perform(held, letter)
    assert end.move is Move.PARK
    office.late(frozen, office.sends(office.call(event).id)[0], reply())
    assert settle(office.store, [(held, end)])
    assert state(office.store, event) == "waiting"
    assert office.run(event, letter) == "done"


def test_a_late_success_stands_for_a_replaced_call(office: Office, event: UUID) -> None:
    """A person wanted it sent as new, and before that it turns out to have happened: nothing is sent."""
    held = parked(office, event)
    resolve(office.store, office.call(event).id, Resolution.RESEND_AS_NEW, "ada")
    office.late(held, office.sends(office.call(event).id)[0], reply())
    assert office.run(event, letter) == "done"
    assert (len(office.transport.sent), [call.state for call in office.calls(event)]) == (1, ["succeeded"])


def test_a_late_success_changes_nothing_once_its_successor_stands(office: Office, event: UUID) -> None:
    """The successor has its own key and its own end; the send of the first keeps its story."""
    held = parked(office, event)
    resolve(office.store, office.call(event).id, Resolution.RESEND_AS_NEW, "ada")
    assert office.run(event, letter) == "done"
    first = office.calls(event)[0]
    office.late(held, office.sends(first.id)[0], reply(201, b"first"))
    assert [call.state for call in office.calls(event)] == ["replaced", "succeeded"]
    assert (office.sends(first.id)[0].status, state(office.store, event)) == (201, "done")


def test_a_late_success_changes_nothing_once_its_successor_stands_elsewhere(
    office: Office, event: UUID
) -> None:
    """The replaced step moved to the place of a rejected one: that call counts now."""
    both = posts("order", "letter", caught=True)
    office.transport.script = [reply(422), crash]
    held = office.die(event, both)
    later(office.store, days=2)
    assert office.run(event, both) == "parked"
    first = office.call(event)
    resolve(office.store, first.id, Resolution.RESEND_AS_NEW, "ada")
    assert office.run_after_retry(event, posts("letter")) == "done"
    office.late(held, office.sends(first.id)[0], reply())
    assert [(one.step, one.position, one.state) for one in office.calls(event)] == [
        ("order", 0, "replaced"),
        ("letter", 0, "succeeded"),
        ("letter", 1, "replaced"),
    ]


def test_a_late_failure_opens_nothing_again(office: Office, event: UUID) -> None:
    """The 500 of an earlier send comes after a replay closed the call: its send stays closed."""
    held = office.die(event, _dying(office))
    assert office.run(event, letter) == "done"
    call = office.call(event)
    office.late(held, office.sends(call.id)[0], reply(500))
    assert office.open_sends(call.id) == 0


def test_the_handler_gets_the_answer_that_is_kept(office: Office, event: UUID) -> None:
    """A late 201 is recorded while a resend is on its way, and the resend is refused: it happened."""
    frozen = office.die(event, _dying(office))

    def refused(_request: Outgoing) -> Reply:
        office.late(frozen, office.sends(office.call(event).id)[0], reply(201, b"first"))
        return reply(404, b"gone")

    office.transport.script = [refused]
    seen: list[Any] = []
    held = office.take(event)
    assert settle(office.store, [(held, office.perform(held, _keeping(seen)))])
    assert [(one.status_code, one.content) for one in seen] == [(201, b"first")]
    assert state(office.store, event) == "done"


@pytest.mark.parametrize("dialect", ["stripe", "none"])
def test_an_answer_that_is_too_long_is_no_reason_to_send_again(store: Store, dialect: str) -> None:
    """It happened, but its answer is not kept: it parks, and a retry past the key's life sends nothing."""
    office, event = Office(store, dialect), deliver(store).event
    office.transport.script = [TOO_LONG]

    def handle(_event: Any, calls: Any) -> None:
        calls.shop.post("/letters", json={}, unprotected=True)

    assert office.run(event, handle) == "parked"
    later(store, days=2)
    retry(store, event, "ada")
    assert office.run(event, handle) == "parked"
    assert len(office.transport.sent) == 1


def test_what_is_said_of_a_long_answer_ends_it(office: Office, event: UUID) -> None:
    """A person gives the part of the answer that the handler needs."""
    office.transport.script = [TOO_LONG]
    assert office.run(event, letter) == "parked"
    resolve(office.store, office.call(event).id, Resolution.HAPPENED, "ada")
    assert office.run(event, letter) == "done"
    assert office.open_sends(office.call(event).id) == 0


def test_a_late_answer_that_is_too_long_stops_the_successor(office: Office, event: UUID) -> None:
    """It happened after all, before it was sent as new: it parks again, and nothing goes out."""
    held = parked(office, event)
    resolve(office.store, office.call(event).id, Resolution.RESEND_AS_NEW, "ada")
    office.late(held, office.sends(office.call(event).id)[0], TOO_LONG)
    assert office.run(event, letter) == "parked"
    assert len(office.transport.sent) == 1


def test_a_late_success_yields_its_once_to_whoever_took_it(store: Store, office: Office) -> None:
    """Another event took the `once` of a replaced call over: the late answer is recorded all the same."""
    first, second = deliver(store, "evt_1").event, deliver(store, "evt_2").event
    handle = posts("order", once="order-1")
    office.transport.script = [crash]
    held = office.die(first, handle)
    later(store, days=2)
    assert office.run(first, handle) == "parked"
    resolve(store, office.call(first).id, Resolution.RESEND_AS_NEW, "ada")
    assert office.run(second, handle) == "done"
    office.late(held, office.sends(office.call(first).id)[0], reply())
    assert office.call(first).state == "succeeded"
    assert office.run(first, handle) == "done"


@pytest.mark.parametrize("status", [201, 422])
def test_an_answer_after_the_life_of_the_key_still_counts(store: Store, status: int) -> None:
    """The answer of the call's one send is the truth about it, days later too."""
    office, event = Office(store), deliver(store).event
    held = parked(office, event)
    later(store, days=3)
    recorded = office.late(held, office.sends(office.call(event).id)[0], reply(status))
    assert recorded.state == {201: "succeeded", 422: "rejected"}[status]
