"""`once`: one effect per API and name, over all events and sources."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from receiver.ledger.control import Resolution, rerun, resolve, retry
from receiver.ledger.queue import settle
from receiver.ledger.queue.sweep import erase_contents
from receiver.ledger.reports import story
from receiver.ledger.store import Store
from tests.integration.call_harness import SILENCE, CallHarness, crash, posts, reply
from tests.integration.steps import LEASE, ONLY_POSTGRES, deliver, later, row, state
from tests.services.claiming import claim

order = posts("order", once="order-1")


@pytest.fixture
def first(store: Store) -> UUID:
    """Record an event."""
    return deliver(store, "evt_1").event


@pytest.fixture
def second(store: Store) -> UUID:
    """Record an event of another source."""
    return deliver(store, "evt_2", source="github").event


def test_a_second_event_gets_the_firsts_response(harness: CallHarness, first: UUID, second: UUID) -> None:
    """The call is sent once, and both handlers get the same response."""
    seen: list[Any] = []

    def handle(_event: Any, calls: Any) -> None:
        seen.append(calls.shop.post("/orders", json={}, once="order-1").content)

    harness.transport.script = [reply(201, b"the first")]
    assert [harness.run(event, handle) for event in (first, second)] == ["done", "done"]
    assert (seen, len(harness.transport.sent)) == ([b"the first"] * 2, 1)


def test_another_once_is_another_effect(harness: CallHarness, first: UUID, second: UUID) -> None:
    """The `once` name decides, and not the step."""
    harness.run(first, order)
    harness.run(second, posts("order", once="order-2"))
    assert len(harness.transport.sent) == 2


def test_a_second_event_waits_for_the_first(harness: CallHarness, first: UUID, second: UUID) -> None:
    """While the first event's result is unknown, the second waits, sends nothing, and uses no attempt."""
    harness.transport.script = [SILENCE]
    harness.run(first, order)
    assert [harness.run(second, order) for _ in range(5)] == ["waiting"] * 5
    assert row(harness.store, second).attempts == 0
    assert harness.run(first, order) == "done"
    assert harness.run(second, order) == "done"
    assert len(harness.transport.sent) == 2


def test_a_swallowed_wait_does_not_spin(harness: CallHarness, first: UUID, second: UUID) -> None:
    """A handler that swallows the wait does not make its event due at once."""
    harness.transport.script = [SILENCE]
    harness.run(first, order)
    assert harness.run(second, posts("order", once="order-1", caught=True)) == "waiting"
    assert claim(harness.store, second, lease=LEASE, worker="w") is None


def test_waits_for_another_event_back_off(harness: CallHarness, first: UUID, second: UUID) -> None:
    """The waits grow with the time already waited, because each costs an attempt's row."""
    harness.transport.script = [SILENCE]
    harness.run(first, order)
    harness.run(second, order)
    later(harness.store, hours=1)
    assert harness.run(second, order) == "waiting"
    now = harness.call(second).trying_since + timedelta(hours=1)
    assert row(harness.store, second).due_at - now > timedelta(minutes=5)


def test_a_second_event_takes_a_rejected_ones_place(harness: CallHarness, first: UUID, second: UUID) -> None:
    """After a rejection the next event sends the call, and a retry of the first gets its response."""
    harness.transport.script = [reply(422)]
    assert harness.run(first, order) == "dead"
    assert harness.run(second, order) == "done"
    retry(harness.store, first, "ada")
    assert harness.run(first, order) == "done"
    assert len(harness.transport.sent) == 2


def test_a_waiting_event_takes_over(harness: CallHarness, first: UUID, second: UUID) -> None:
    """An event that waited longer than give_up_after sends the call once the first is rejected."""
    harness.transport.script = [SILENCE]
    harness.run(first, order)
    harness.run(second, order)
    later(harness.store, days=4)
    harness.change_call(harness.call(first).id, state="rejected")
    assert harness.run(second, order) == "done"
    assert len(harness.transport.sent) == 2


def test_an_event_that_waited_long_still_gets_the_response(
    harness: CallHarness, first: UUID, second: UUID
) -> None:
    """An event that waited longer than give_up_after gets the first event's response and does not park."""
    harness.transport.script = [SILENCE]
    harness.run(first, order)
    harness.run(second, order)
    harness.run(first, order)
    later(harness.store, days=4)
    assert harness.run(second, order) == "done"


def test_a_second_event_waits_for_a_parked_first(harness: CallHarness, first: UUID, second: UUID) -> None:
    """Resolving the parked call as happened gives both events their response."""
    harness.transport.script = [SILENCE]
    harness.run(first, order)
    harness.rotate("another")
    assert harness.run(first, order) == "parked"
    assert harness.run(second, order) == "waiting"
    resolve(harness.store, harness.call(first).id, Resolution.HAPPENED, "ada")
    assert [harness.run(event, order) for event in (second, first)] == ["done", "done"]
    assert len(harness.transport.sent) == 1


def test_a_wait_for_another_event_parks_after_give_up_after(
    harness: CallHarness, first: UUID, second: UUID
) -> None:
    """After give_up_after an event that waits for another event's call parks."""
    harness.transport.script = [SILENCE]
    harness.run(first, order)
    harness.run(second, order)
    later(harness.store, days=3, seconds=1)
    assert harness.run(second, order) == "parked"
    waits = f"`--resend-as-new` waits anew for the call {harness.call(first).id} of another event"
    sentence = story(harness.store, second).as_json()["next"]
    assert waits in sentence
    assert "Nobody knows whether it happened: that is the matter of the call" in sentence
    resolve(harness.store, harness.call(second).id, Resolution.RESEND_AS_NEW, "ada")
    assert harness.run(second, order) == "waiting", "as the next step announced"


def test_an_erased_response_can_be_given_again(harness: CallHarness, first: UUID, second: UUID) -> None:
    """If the first event's response is erased, the second parks, and a person can give the response."""
    harness.run(first, order)
    with harness.store.write() as connection:
        erase_contents(connection, [first])
    assert harness.run(second, order) == "parked"
    resolve(harness.store, harness.call(second).id, Resolution.HAPPENED, "ada")
    assert harness.run(second, order) == "done"
    assert len(harness.transport.sent) == 1


def test_a_rerun_gets_what_was_done_once(harness: CallHarness, first: UUID) -> None:
    """The next generation gets the stored response."""
    harness.run(first, order)
    rerun(harness.store, first, "ada", generation=0)
    assert harness.run(first, order) == "done"
    assert len(harness.transport.sent) == 1


def test_a_first_that_died_is_not_overtaken(harness: CallHarness, first: UUID, second: UUID) -> None:
    """After a crash during the first event's send the second waits, for however long."""
    harness.transport.script = [crash]
    harness.die(first, order)
    later(harness.store, days=2)
    assert harness.run(second, order) == "waiting"
    assert len(harness.transport.sent) == 1


@pytest.mark.parametrize(**ONLY_POSTGRES)
def test_many_events_at_once_send_one(store: Store) -> None:
    """Eight concurrent events with one `once` have one effect, and all end done."""
    harness = CallHarness(store)
    events = [deliver(store, f"evt_{n}", source=f"source{n % 3}").event for n in range(8)]
    assert _at_once(harness, events) <= {"done", "waiting"}
    assert {harness.run(event, order) for event in events if state(store, event) != "done"} <= {"done"}
    assert len(harness.transport.sent) == 1


@pytest.mark.parametrize(**ONLY_POSTGRES)
def test_many_that_waited_take_over_one_at_a_time(store: Store) -> None:
    """When the first is rejected while seven wait, exactly one of them sends the call."""
    harness = CallHarness(store)
    events = [deliver(store, f"evt_{n}").event for n in range(8)]
    harness.transport.script = [SILENCE]
    for event in events:
        harness.run(event, order)
    harness.change_call(harness.call(events[0]).id, state="rejected")
    later(store, minutes=1)
    assert _at_once(harness, events[1:]) <= {"done", "waiting"}
    assert {row(store, event).attempts for event in events[1:] if state(store, event) == "waiting"} <= {0}
    assert len(harness.transport.sent) == 2


def _at_once(harness: CallHarness, events: list[UUID]) -> set[str]:
    """Run one attempt of each event concurrently; return their states."""
    held = [harness.take(event) for event in events]
    gate = threading.Barrier(len(events))

    def one(n: int) -> str:
        gate.wait()
        assert settle(harness.store, [(held[n], harness.perform(held[n], order))])
        return state(harness.store, events[n])

    with ThreadPoolExecutor(len(events)) as pool:
        return set(pool.map(one, range(len(events))))


def test_a_rerun_that_waits_for_its_own_past_can_be_resolved(harness: CallHarness, first: UUID) -> None:
    """A call of an earlier generation that holds the `once` can be resolved after a rerun."""
    harness.transport.script = [crash]
    harness.die(first, order)
    later(harness.store, days=2)
    assert harness.run(first, order) == "parked"
    held = harness.call(first)
    rerun(harness.store, first, "ada", generation=0)
    assert harness.run(first, order) == "waiting"
    later(harness.store, days=4)
    assert harness.run(first, order) == "parked"
    resolve(harness.store, held.id, Resolution.HAPPENED, "ada")
    assert harness.run(first, order) == "done"
    assert len(harness.transport.sent) == 1
