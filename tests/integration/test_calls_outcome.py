"""How open calls change the outcome of an attempt, and what retry, rerun and resolve do to calls."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest

from receiver.ledger.calls import SendBegun, begin_send
from receiver.ledger.control import Resolution, discard, rerun, resolve, retry
from receiver.ledger.errors import NotAllowed, UnknownCall
from receiver.ledger.lease import Outcome
from receiver.ledger.queue import expire, settle
from receiver.ledger.states import Move
from receiver.ledger.store import Store
from tests.integration.call_harness import SILENCE, UNSENT, CallHarness, crash, letter, posts, reply, used_up
from tests.integration.steps import ONLY_POSTGRES, deliver, later, row, state
from worker import CallRejected, Dead
from worker.calls.transport import Outgoing, Reply

caught = posts("letter", caught=True)


@pytest.mark.parametrize(
    ("answer", "attempts"), [(SILENCE, 1), (UNSENT, 0), (reply(429), 0), (reply(503), 0), (reply(500), 1)]
)
def test_a_swallowed_error_does_not_make_it_done(
    harness: CallHarness, event: UUID, answer: Any, attempts: int
) -> None:
    """While a call is unfinished, an event whose handler swallows its error waits instead of being done."""
    harness.transport.script = [answer]
    assert harness.run(event, caught) == "waiting"
    found = row(harness.store, event)
    assert found.attempts == attempts
    assert "is not finished" in found.reason
    assert harness.run(event, caught) == "done"


def test_a_swallowed_park_parks(harness: CallHarness, event: UUID) -> None:
    """A call that parked parks its event, although the handler swallowed the error and made another call."""
    harness.transport.script = [reply(400, b"idempotency_error"), reply()]
    assert harness.run(event, posts("letter", "order", caught=True)) == "parked"
    first, second = harness.calls(event)
    assert (first.state, second.state) == ("parked", "succeeded")
    assert row(harness.store, event).parked_call == first.id


def test_a_forgotten_call_parks(harness: CallHarness, event: UUID) -> None:
    """An event parks if its handler no longer makes a call that an earlier attempt began."""
    harness.transport.script = [reply(), SILENCE]
    harness.run(event, posts("letter", "order"))
    assert harness.run(event, posts("letter")) == "parked"
    call = harness.call(event)
    assert (call.state, call.step) == ("parked", "order")
    assert "does not make it any more: unless it does again, resending it as new sends nothing" in call.reason
    resolve(harness.store, call.id, Resolution.HAPPENED, "ada")
    assert harness.run(event, posts("letter")) == "done"


def test_a_handler_that_gives_up_with_an_open_send_parks(harness: CallHarness, event: UUID) -> None:
    """`Dead` does not say whether the open call happened."""

    def handle(_event: Any, calls: Any) -> None:
        caught(_event, calls)
        raise Dead("enough")

    harness.transport.script = [SILENCE]
    assert harness.run(event, handle) == "parked"
    assert harness.call(event).state == "parked"


@pytest.mark.parametrize("answer", [SILENCE, reply(500), reply(503)])
def test_attempts_used_up_with_an_open_send_park(harness: CallHarness, event: UUID, answer: Any) -> None:
    """An unknown result needs a person, so the event is not dead."""

    def handle(_event: Any, calls: Any) -> None:
        caught(_event, calls)
        raise RuntimeError

    harness.transport.script = [answer]
    used_up(harness.store, event)
    assert harness.run(event, handle) == "parked"
    assert row(harness.store, event).parked_call == harness.call(event).id


@pytest.mark.parametrize("answer", [UNSENT, reply(429)])
def test_attempts_used_up_with_nothing_open_end_it(harness: CallHarness, event: UUID, answer: Any) -> None:
    """A call that certainly did not happen lets the event die."""

    def handle(_event: Any, calls: Any) -> None:
        caught(_event, calls)
        raise RuntimeError

    harness.transport.script = [answer]
    used_up(harness.store, event)
    assert harness.run(event, handle) == "dead"


def test_the_last_worker_that_vanishes_with_an_open_send_parks(harness: CallHarness, event: UUID) -> None:
    """The next claim runs no handler, and parks the event for its open send."""
    used_up(harness.store, event)
    harness.transport.script = [crash]
    harness.die(event, letter)
    assert harness.run(event, letter) == "parked"
    assert len(harness.transport.sent) == 1


def test_a_release_leaves_a_send_under_way_alone(harness: CallHarness, event: UUID) -> None:
    """A shutdown does not release an event during a send: its lease must expire first."""
    held = harness.take(event)
    released: list[bool] = []

    def shutdown(_request: Outgoing) -> Reply:
        released.append(bool(settle(harness.store, [(held, Outcome(Move.RELEASE))])))
        return reply()

    harness.transport.script = [shutdown]
    end = harness.perform(held, letter)
    assert released == [False]
    assert settle(harness.store, [(held, end)])
    assert state(harness.store, event) == "done"


@pytest.mark.parametrize("after", ["planned", "answered"])
def test_a_release_gives_back_what_is_not_under_way(harness: CallHarness, event: UUID, after: str) -> None:
    """Without a send in progress the event is released, and its attempt is not counted."""
    held = harness.take(event)
    harness.transport.script = [UNSENT if after == "planned" else reply(500)]
    harness.perform(held, letter)
    assert settle(harness.store, [(held, Outcome(Move.RELEASE))])
    found = row(harness.store, event)
    assert (found.state, found.attempts) == ("waiting", 0)
    # The call may not be due in the first of these attempts: its back-off has jitter.
    assert harness.run(event, letter) == "done" or harness.run(event, letter) == "done"


def test_a_call_for_later_after_a_crash_costs_the_crash_alone(harness: CallHarness, event: UUID) -> None:
    """An attempt that ends with "call later" is not counted; the crash before it is."""
    harness.transport.script = [crash]
    harness.die(event, letter)
    harness.transport.script = [reply(503)] * 3
    assert [harness.run(event, letter) for _ in range(3)] == ["waiting"] * 3
    found = row(harness.store, event)
    assert (found.attempts, found.crashes) == (1, 1)


def test_a_rejected_call_gets_a_successor_when_a_person_retries(harness: CallHarness, event: UUID) -> None:
    """Of three calls with the second rejected, a retry sends the second under a new key, and the third."""
    harness.transport.script = [reply(), reply(422), reply()]
    assert harness.run(event, posts("a", "b", "c")) == "dead"
    assert harness.run_after_retry(event, posts("a", "b", "c")) == "done"
    assert [request.url.rpartition("/")[2] for request in harness.transport.sent] == ["a", "b", "b", "c"]
    assert len(set(harness.transport.keys())) == 4
    calls = [(call.step, call.successor, call.state) for call in harness.calls(event)]
    assert calls == [
        ("a", 0, "succeeded"),
        ("b", 0, "replaced"),
        ("b", 1, "succeeded"),
        ("c", 0, "succeeded"),
    ]


def test_a_refused_credential_gets_a_successor_by_itself(harness: CallHarness, event: UUID) -> None:
    """After a 401 the event waits; with a new credential each of three calls has one effect."""
    harness.transport.script = [reply(), reply(401)]
    assert harness.run(event, posts("a", "b", "c")) == "waiting"
    harness.rotate("mended")
    assert harness.run(event, posts("a", "b", "c")) == "done"
    assert [request.url.rpartition("/")[2] for request in harness.transport.sent] == ["a", "b", "b", "c"]


def test_a_new_delivery_revives_a_rejected_call(harness: CallHarness, event: UUID) -> None:
    """A new delivery of the dead event sends a successor of its rejected call."""
    harness.transport.script = [reply(422)]
    assert harness.run(event, letter) == "dead"
    later(harness.store, hours=2)
    deliver(harness.store)
    assert harness.run(event, letter) == "done"
    assert len(set(harness.transport.keys())) == 2


def test_a_rerun_makes_new_keys_throughout(harness: CallHarness, event: UUID) -> None:
    """Every call of the next generation has a new key, so every effect happens again."""
    assert harness.run(event, posts("a", "b")) == "done"
    rerun(harness.store, event, "ada", generation=0)
    assert harness.run(event, posts("a", "b")) == "done"
    assert len(set(harness.transport.keys())) == 4
    assert [call.generation for call in harness.calls(event)] == [0, 0, 1, 1]


def test_a_late_response_for_an_earlier_generation_does_not_wake(harness: CallHarness, event: UUID) -> None:
    """A late response to a call of an earlier generation does not wake the event."""
    harness.transport.script = [crash]
    held = harness.die(event, letter)
    later(harness.store, days=2)
    assert harness.run(event, letter) == "parked"
    rerun(harness.store, event, "ada", generation=0)
    harness.transport.script = [SILENCE]
    used_up(harness.store, event)
    assert harness.run(event, letter) == "parked"
    old, new = harness.calls(event)
    harness.late(held, harness.sends(old.id)[0], reply())
    assert (state(harness.store, event), harness.call(event).state) == ("parked", "parked")
    with pytest.raises(NotAllowed):
        resolve(harness.store, old.id, Resolution.HAPPENED, "ada")
    resolve(harness.store, new.id, Resolution.HAPPENED, "ada")


def test_given_up_is_the_end_until_a_retry(harness: CallHarness, event: UUID) -> None:
    """A given-up call ends its event; a late response is recorded, and a retry parks the event again."""
    harness.transport.script = [crash]
    held = harness.die(event, letter)
    later(harness.store, days=2)
    harness.run(event, letter)
    resolve(harness.store, harness.call(event).id, Resolution.GIVE_UP, "ada")
    assert (state(harness.store, event), harness.call(event).state) == ("dead", "given up")
    retry(harness.store, event, "ada")
    assert harness.run(event, letter) == "parked"
    discard(harness.store, event, "ada")
    harness.late(held, harness.sends(harness.call(event).id)[0], reply())
    assert (state(harness.store, event), harness.call(event).state) == ("dead", "succeeded")
    assert len(harness.transport.sent) == 1


@pytest.mark.parametrize("how", list(Resolution))
def test_only_a_parked_events_unfinished_call_is_resolved(
    harness: CallHarness, event: UUID, how: Resolution
) -> None:
    """A resolution is refused unless the event is parked and the call unfinished."""
    harness.transport.script = [SILENCE]
    harness.run(event, letter)
    call = harness.call(event).id
    with pytest.raises(NotAllowed):
        resolve(harness.store, call, how, "ada")
    assert harness.run(event, letter) == "done"
    with pytest.raises(NotAllowed):
        resolve(harness.store, call, how, "ada")
    with pytest.raises(UnknownCall):
        resolve(harness.store, event, how, "ada")
    assert (harness.call(event).state, state(harness.store, event)) == ("succeeded", "done")


def test_a_crash_loop_with_a_call_can_be_resolved(harness: CallHarness, event: UUID) -> None:
    """The pending call of an event parked for a crash loop can be resolved."""
    harness.transport.script = [crash] * 5
    for _ in range(5):
        harness.die(event, letter)
    later(harness.store, minutes=2)
    expire(harness.store)
    assert state(harness.store, event) == "parked"
    resolve(harness.store, harness.call(event).id, Resolution.HAPPENED, "ada")
    assert harness.run(event, letter) == "done"


@pytest.mark.parametrize(**ONLY_POSTGRES)
def test_recording_marking_resolving_and_settling_do_not_deadlock(store: Store) -> None:
    """Concurrent writers of one event succeed, because each locks the event first."""
    harness = CallHarness(store)
    event = deliver(store).event
    harness.transport.script = [crash]
    held = harness.die(event, letter)
    later(store, seconds=61)
    fresh = harness.take(event)
    call = harness.call(event)
    send = harness.sends(call.id)[0]
    assert isinstance(begin_send(store, fresh, call.id, harness.terms()), SendBegun)
    gate = threading.Barrier(8)

    def act(n: int) -> object:
        gate.wait()
        for _ in range(10):
            if n % 4 == 0:
                harness.late(held, send, reply(500))
            elif n % 4 == 1:
                assert isinstance(begin_send(store, fresh, call.id, harness.terms()), SendBegun)
            elif n % 4 == 2:
                with pytest.raises(NotAllowed):
                    resolve(store, call.id, Resolution.HAPPENED, "ada")
            else:
                assert not settle(store, [(fresh, Outcome(Move.RELEASE))])
        return n

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(act, range(8))) == list(range(8))
    numbers = [item.number for item in harness.sends(call.id)]
    assert numbers == list(range(1, 23))


def test_a_caught_rejection_is_not_resent_by_a_retry(harness: CallHarness, event: UUID) -> None:
    """A retry does not resend a rejected call whose error the handler caught to make another call instead."""

    def handler(_event: Any, calls: Any) -> None:
        try:
            calls.shop.post("/letter", json={})
        except CallRejected:
            calls.shop.post("/order", json={})
            raise Dead from None

    harness.transport.script = [reply(422), reply(201)]
    assert harness.run(event, handler) == "dead"
    assert harness.run_after_retry(event, handler) == "dead"
    assert [request.url.rpartition("/")[2] for request in harness.transport.sent] == ["letter", "order"]
