"""How an attempt ends, given its calls; and what a person's retry, rerun and word on a call do."""

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
from tests.integration.office import SILENCE, UNSENT, Office, crash, letter, posts, reply, used_up
from tests.integration.steps import ONLY_POSTGRES, deliver, later, row, state
from worker import CallRejected, Dead
from worker.calls.transport import Outgoing, Reply

caught = posts("letter", caught=True)


@pytest.mark.parametrize(
    ("answer", "attempts"), [(SILENCE, 1), (UNSENT, 0), (reply(429), 0), (reply(503), 0), (reply(500), 1)]
)
def test_a_swallowed_error_does_not_make_it_done(
    office: Office, event: UUID, answer: Any, attempts: int
) -> None:
    """`except Exception: pass` around a call that is not finished: the event waits for it, and ends."""
    office.transport.script = [answer]
    assert office.run(event, caught) == "waiting"
    found = row(office.store, event)
    assert found.attempts == attempts
    assert "is not finished" in found.reason
    assert office.run(event, caught) == "done"


def test_a_swallowed_park_parks(office: Office, event: UUID) -> None:
    """The handler goes on to its other calls, and the event parks for the first all the same."""
    office.transport.script = [reply(400, b"idempotency_error"), reply()]
    assert office.run(event, posts("letter", "order", caught=True)) == "parked"
    first, second = office.calls(event)
    assert (first.state, second.state) == ("parked", "succeeded")
    assert row(office.store, event).parked_call == first.id


def test_a_forgotten_call_parks(office: Office, event: UUID) -> None:
    """A handler that does not make a call any more that an earlier attempt began is not done."""
    office.transport.script = [reply(), SILENCE]
    office.run(event, posts("letter", "order"))
    assert office.run(event, posts("letter")) == "parked"
    call = office.call(event)
    assert (call.state, call.step) == ("parked", "order")
    assert "does not make it any more: unless it does again, resending it as new sends nothing" in call.reason
    resolve(office.store, call.id, Resolution.HAPPENED, "ada")
    assert office.run(event, posts("letter")) == "done"


def test_a_handler_that_gives_up_with_an_open_send_parks(office: Office, event: UUID) -> None:
    """`Dead` is no word on whether the call happened."""

    def handle(_event: Any, calls: Any) -> None:
        caught(_event, calls)
        raise Dead("enough")

    office.transport.script = [SILENCE]
    assert office.run(event, handle) == "parked"
    assert office.call(event).state == "parked"


@pytest.mark.parametrize("answer", [SILENCE, reply(500), reply(503)])
def test_attempts_used_up_with_an_open_send_park(office: Office, event: UUID, answer: Any) -> None:
    """Nobody knows whether it happened: that is not the end of an event."""

    def handle(_event: Any, calls: Any) -> None:
        caught(_event, calls)
        raise RuntimeError

    office.transport.script = [answer]
    used_up(office.store, event)
    assert office.run(event, handle) == "parked"
    assert row(office.store, event).parked_call == office.call(event).id


@pytest.mark.parametrize("answer", [UNSENT, reply(429)])
def test_attempts_used_up_with_nothing_open_end_it(office: Office, event: UUID, answer: Any) -> None:
    """What certainly did not happen needs nobody."""

    def handle(_event: Any, calls: Any) -> None:
        caught(_event, calls)
        raise RuntimeError

    office.transport.script = [answer]
    used_up(office.store, event)
    assert office.run(event, handle) == "dead"


def test_the_last_worker_that_vanishes_with_an_open_send_parks(office: Office, event: UUID) -> None:
    """The next claim runs no handler and finds a send that nobody knows the end of."""
    used_up(office.store, event)
    office.transport.script = [crash]
    office.die(event, letter)
    assert office.run(event, letter) == "parked"
    assert len(office.transport.sent) == 1


def test_a_release_leaves_a_send_under_way_alone(office: Office, event: UUID) -> None:
    """At shutdown an event whose call is out is not handed on: its lease runs out first."""
    held = office.take(event)
    released: list[bool] = []

    def shutdown(_request: Outgoing) -> Reply:
        released.append(bool(settle(office.store, [(held, Outcome(Move.RELEASE))])))
        return reply()

    office.transport.script = [shutdown]
    end = office.perform(held, letter)
    assert released == [False]
    assert settle(office.store, [(held, end)])
    assert state(office.store, event) == "done"


@pytest.mark.parametrize("after", ["planned", "answered"])
def test_a_release_gives_back_what_is_not_under_way(office: Office, event: UUID, after: str) -> None:
    """Before the first send and after an answer it is released, and its attempt does not count."""
    held = office.take(event)
    office.transport.script = [UNSENT if after == "planned" else reply(500)]
    office.perform(held, letter)
    assert settle(office.store, [(held, Outcome(Move.RELEASE))])
    found = row(office.store, event)
    assert (found.state, found.attempts) == ("waiting", 0)
    # The call itself may not be due at once: its back-off has jitter.
    assert office.run(event, letter) == "done" or office.run(event, letter) == "done"


def test_a_call_for_later_after_a_crash_costs_the_crash_alone(office: Office, event: UUID) -> None:
    """An attempt that ends with later gives its own count back and no other."""
    office.transport.script = [crash]
    office.die(event, letter)
    office.transport.script = [reply(503)] * 3
    assert [office.run(event, letter) for _ in range(3)] == ["waiting"] * 3
    found = row(office.store, event)
    assert (found.attempts, found.crashes) == (1, 1)


def test_a_rejected_call_gets_a_successor_when_a_person_retries(office: Office, event: UUID) -> None:
    """Three calls, the second rejected: the first is not sent again, the second has a new key."""
    office.transport.script = [reply(), reply(422), reply()]
    assert office.run(event, posts("a", "b", "c")) == "dead"
    assert office.run_after_retry(event, posts("a", "b", "c")) == "done"
    assert [one.url.rpartition("/")[2] for one in office.transport.sent] == ["a", "b", "b", "c"]
    assert len(set(office.transport.keys())) == 4
    told = [(call.step, call.successor, call.state) for call in office.calls(event)]
    assert told == [("a", 0, "succeeded"), ("b", 0, "replaced"), ("b", 1, "succeeded"), ("c", 0, "succeeded")]


def test_a_refused_credential_gets_a_successor_by_itself(office: Office, event: UUID) -> None:
    """The event waits after a 401; with the credential mended, effects 1, 2 and 3 happen once each."""
    office.transport.script = [reply(), reply(401)]
    assert office.run(event, posts("a", "b", "c")) == "waiting"
    office.rotate("mended")
    assert office.run(event, posts("a", "b", "c")) == "done"
    assert [one.url.rpartition("/")[2] for one in office.transport.sent] == ["a", "b", "b", "c"]


def test_a_new_delivery_revives_a_rejected_call(office: Office, event: UUID) -> None:
    """It did not happen, and the provider sends the event again: a successor goes out."""
    office.transport.script = [reply(422)]
    assert office.run(event, letter) == "dead"
    later(office.store, hours=2)
    deliver(office.store)
    assert office.run(event, letter) == "done"
    assert len(set(office.transport.keys())) == 2


def test_a_rerun_makes_new_keys_throughout(office: Office, event: UUID) -> None:
    """Every effect happens again, on purpose, under keys of the next generation."""
    assert office.run(event, posts("a", "b")) == "done"
    rerun(office.store, event, "ada", generation=0)
    assert office.run(event, posts("a", "b")) == "done"
    assert len(set(office.transport.keys())) == 4
    assert [call.generation for call in office.calls(event)] == [0, 0, 1, 1]


def test_a_late_answer_for_an_earlier_generation_wakes_nobody(office: Office, event: UUID) -> None:
    """The event was run again and parked for its new call: the old call's answer is that one's alone."""
    office.transport.script = [crash]
    held = office.die(event, letter)
    later(office.store, days=2)
    assert office.run(event, letter) == "parked"
    rerun(office.store, event, "ada", generation=0)
    office.transport.script = [SILENCE]
    used_up(office.store, event)
    assert office.run(event, letter) == "parked"
    old, new = office.calls(event)
    office.late(held, office.sends(old.id)[0], reply())
    assert (state(office.store, event), office.call(event).state) == ("parked", "parked")
    with pytest.raises(NotAllowed):
        resolve(office.store, old.id, Resolution.HAPPENED, "ada")
    resolve(office.store, new.id, Resolution.HAPPENED, "ada")


def test_given_up_is_the_end_until_a_retry(office: Office, event: UUID) -> None:
    """A person leaves it as it is: the event is dead, a late answer is noted, a retry parks it again."""
    office.transport.script = [crash]
    held = office.die(event, letter)
    later(office.store, days=2)
    office.run(event, letter)
    resolve(office.store, office.call(event).id, Resolution.GIVE_UP, "ada")
    assert (state(office.store, event), office.call(event).state) == ("dead", "given up")
    retry(office.store, event, "ada")
    assert office.run(event, letter) == "parked"
    discard(office.store, event, "ada")
    office.late(held, office.sends(office.call(event).id)[0], reply())
    assert (state(office.store, event), office.call(event).state) == ("dead", "succeeded")
    assert len(office.transport.sent) == 1


@pytest.mark.parametrize("how", list(Resolution))
def test_only_a_parked_events_unfinished_call_is_resolved(
    office: Office, event: UUID, how: Resolution
) -> None:
    """Call and event must both allow it, else nothing changes."""
    office.transport.script = [SILENCE]
    office.run(event, letter)
    call = office.call(event).id
    with pytest.raises(NotAllowed):
        resolve(office.store, call, how, "ada")
    assert office.run(event, letter) == "done"
    with pytest.raises(NotAllowed):
        resolve(office.store, call, how, "ada")
    with pytest.raises(UnknownCall):
        resolve(office.store, event, how, "ada")
    assert (office.call(event).state, state(office.store, event)) == ("succeeded", "done")


def test_a_crash_loop_with_a_call_can_be_resolved(office: Office, event: UUID) -> None:
    """Five workers vanished: the event parks, and its pending call takes a person's word."""
    office.transport.script = [crash] * 5
    for _ in range(5):
        office.die(event, letter)
    later(office.store, minutes=2)
    expire(office.store)
    assert state(office.store, event) == "parked"
    resolve(office.store, office.call(event).id, Resolution.HAPPENED, "ada")
    assert office.run(event, letter) == "done"


@pytest.mark.parametrize(**ONLY_POSTGRES)
def test_recording_marking_resolving_and_settling_do_not_deadlock(store: Store) -> None:
    """Everybody locks the event first: workers, late answers and people at one event all get through."""
    office = Office(store)
    event = deliver(store).event
    office.transport.script = [crash]
    held = office.die(event, letter)
    later(store, seconds=61)
    fresh = office.take(event)
    call = office.call(event)
    send = office.sends(call.id)[0]
    assert isinstance(begin_send(store, fresh, call.id, office.terms()), SendBegun)
    gate = threading.Barrier(8)

    def act(n: int) -> object:
        gate.wait()
        for _ in range(10):
            if n % 4 == 0:
                office.late(held, send, reply(500))
            elif n % 4 == 1:
                assert isinstance(begin_send(store, fresh, call.id, office.terms()), SendBegun)
            elif n % 4 == 2:
                with pytest.raises(NotAllowed):
                    resolve(store, call.id, Resolution.HAPPENED, "ada")
            else:
                assert not settle(store, [(fresh, Outcome(Move.RELEASE))])
        return n

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(act, range(8))) == list(range(8))
    numbers = [one.number for one in office.sends(call.id)]
    assert numbers == list(range(1, 23))


def test_what_a_handler_went_past_is_not_sent_by_a_retry(office: Office, event: UUID) -> None:
    """A rejected letter was caught and an order made instead: a retry must not make both."""

    def handler(_event: Any, calls: Any) -> None:
        try:
            calls.shop.post("/letter", json={})
        except CallRejected:
            calls.shop.post("/order", json={})
            raise Dead from None

    office.transport.script = [reply(422), reply(201)]
    assert office.run(event, handler) == "dead"
    assert office.run_after_retry(event, handler) == "dead"
    assert [one.url.rpartition("/")[2] for one in office.transport.sent] == ["letter", "order"]
